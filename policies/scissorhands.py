"""Tokens that mattered lately will matter again; drop the ones most often unimportant."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import Facts, LayerView, Moment, PolicyError, ScoringPolicy, unseen_slots


class Scissorhands(ScoringPolicy):
    """Per KV head, count in how many of the last `history` queries a token got less than the average
    attention 1/n; when the cache exceeds its budget, drop those with the most low votes.

    Algorithms 1 and 2 of the paper, with the mean over the query heads of a KV head (the paper has no
    GQA). A round drops max(drop * budget, excess) tokens, so the cache saws between
    (1 - drop) * budget and the budget. The prompt's last `history` queries count like decode steps; the
    prompt's excess goes in one act. No sinks are protected: they survive by their votes.
    """

    name: ClassVar[str] = "scissorhands"
    paper: ClassVar[str] = "arXiv:2305.17118"
    reads: ClassVar[tuple[str, ...]] = ("keys", "queries")

    sinks: int = Field(0, ge=0, le=1024, description="First tokens of the prompt, always kept")
    recent: int = Field(10, ge=1, le=4096, description="Newest tokens, always kept (r in the paper)")
    history: int = Field(400, ge=1, le=512, description="Queries whose votes count (w in the paper)")
    drop: float = Field(0.5, gt=0, le=1, description="Share of the budget dropped by a round (m / B)")
    slope: float = Field(
        0.0, ge=0, le=0.5, description="Budget of layer l of L: B * (1 - slope + 2 * slope * l / (L - 1))"
    )

    @property
    def query_window(self) -> int:
        return self.history

    def check(self, facts: Facts) -> None:
        if self.slope > 0 and facts.groups < 2:
            raise PolicyError(
                f"kv_policy.slope is {self.slope}, which gives layers different budgets, but this server "
                "holds all layers in one group; start it with --kv-groups 2 or more, or use slope 0",
                param="kv_policy.slope",
                reason="unsupported",
            )

    def due(self, at: Moment) -> int | None:
        if at.stage != "decode":
            return super().due(at)
        target = self.target(at.logical)
        excess = at.physical - target
        if not self.decode or excess <= 0:
            return None
        return max(at.physical - max(round(self.drop * target), excess), min(self.protected + 1, target))

    def overshoot(self) -> int:
        return 1

    def shares(self, keep: int, num_layers: int, held: int) -> list[int] | None:
        if self.slope == 0 or num_layers < 2:
            return None
        step = 2 * self.slope / (num_layers - 1)
        exact = [keep * (1 - self.slope + step * layer) for layer in range(num_layers)]
        whole = [int(x) for x in exact]
        spare = keep * num_layers - sum(whole)
        for layer in sorted(range(num_layers), key=lambda i: whole[i] - exact[i])[:spare]:
            whole[layer] += 1
        return whole

    def scores(self, view: LayerView) -> Tensor:
        low = self._low_votes(view)
        view.state["low"] = low
        return -low.sum(dim=-1, dtype=torch.int32)

    def _low_votes(self, view: LayerView) -> Tensor:
        """(H, n, up to `history`) uint8: one column per query, oldest first."""
        assert view.query_positions is not None
        fresh = int((view.query_positions >= view.since).sum())
        votes = view.per_head(_low, last=fresh).transpose(1, 2)  # (H, n, fresh)
        earlier = view.state.get("low")
        if earlier is not None:
            votes = torch.cat([earlier, votes], dim=2)
        return votes[:, :, -self.history :]


def _low(probs: Tensor, seen: Tensor) -> Tensor:
    """(W, n) uint8: slots that a query could see and gave less than the average attention.

    The threshold 1/n is lowered by a rounding error, so that uniform attention casts no vote.
    """
    mean = probs[0] if len(probs) == 1 else probs.mean(dim=0)
    low = mean < ((1 - 1e-5) / seen)[:, None]
    young, unseen = unseen_slots(seen, low.shape[1])
    low[:, young:].masked_fill_(unseen, False)
    return low.view(torch.uint8)

"""Tokens that mattered lately will matter again; drop the ones most often unimportant."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kvserve.policy import NEVER, Evidence, Keys, LayerView, Moment, Queries, ScoringPolicy, UnevenLayers
from policies.scissorhands_variants import columns, last_use, low_votes, mean_attention

_DEFAULTS = {"cold-compress": {"sinks": 4}, "official": {"history": 100}}  # where a variant's are not the paper's


class Scissorhands(UnevenLayers, ScoringPolicy):
    """Per KV head, count in how many of the last `history` queries a token got less than the average
    attention 1/n; when the cache exceeds its budget, drop those with the most low votes.

    Algorithms 1 and 2 of the paper, with the mean over the query heads of a KV head (the paper has no
    GQA). A round drops max(drop * budget, excess) tokens, so the cache saws between
    (1 - drop) * budget and the budget. The prompt's last `history` queries count like decode steps; the
    prompt's excess goes in one act. No sinks are protected: they survive by their votes.

    Variants, for comparison with numbers of released code; both drop the excess every `slack` tokens:
    `cold-compress` ranks by the mean attention (or share of high votes, see `measure`) over the queries that saw a
    token, at most `history`, and protects 4 sinks. Its release takes victims one by one from a list made now and then.
    `official` is an adaptation: that release masks scores of a prompt, has no budget and frees nothing. A
    token stays visible there while one of the last `history` = 100 queries gave it more than the 90th
    percentile of its row; here such tokens stay first, the latest used before others, then the newest.
    """

    name: ClassVar[str] = "scissorhands"
    paper: ClassVar[str] = "arXiv:2305.17118"

    variant: Literal["paper", "cold-compress", "official"] = Field(
        "paper", description="The paper's algorithm, or what released code ranks by"
    )
    sinks: int = Field(
        0, ge=0, le=1024, description="First tokens of the prompt, always kept; 4 unless given with 'cold-compress'"
    )
    recent: int = Field(10, ge=1, le=4096, description="Newest tokens, always kept (r in the paper)")
    history: int = Field(
        400, ge=1, le=512, description="Queries whose votes count (w in the paper); 100 unless given with 'official'"
    )
    drop: float = Field(0.5, gt=0, le=1, description="'paper': share of the budget dropped by a round (m / B)")
    measure: Literal["probability", "bit"] = Field(
        "probability", description="'cold-compress': mean attention, or how often it was 1/n or more"
    )
    percentile: float = Field(0.9, ge=0, lt=1, description="'official': what of its row a token must exceed")
    slope: float = Field(
        0.0, ge=0, le=0.5, description="Budget of layer l of L: B * (1 - slope + 2 * slope * l / (L - 1))"
    )

    @model_validator(mode="before")
    @classmethod
    def _variant_defaults(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return {**_DEFAULTS.get(str(fields.get("variant")), {}), **fields}

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return Keys(), Queries(self.history)

    @property
    def uneven(self) -> bool:
        return self.slope > 0

    def due(self, at: Moment) -> int | None:
        if at.stage != "decode" or self.variant != "paper":
            return super().due(at)
        target = self.target(at.logical, at.prompt)
        excess = at.physical - target
        if not self.decode or excess <= 0:
            return None
        return max(at.physical - max(round(self.drop * target), excess), min(self.protected + 1, target))

    def next_due(self, at: Moment) -> int:
        if self.variant != "paper":
            return super().next_due(at)
        return at.logical + max(1, self.target(at.logical, at.prompt) + 1 - at.physical) if self.decode else NEVER

    def overshoot(self) -> int:
        return 1 if self.variant == "paper" else super().overshoot()

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
        if self.variant == "cold-compress":
            return mean_attention(view, self.history, self.measure)
        if self.variant == "official":
            return last_use(view, self.history, self.percentile)
        return -columns(view, "low", low_votes, self.history).sum(dim=-1, dtype=torch.int32)

"""The tokens that come after show which ones before them stand out."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, ScoringPolicy, Values


class LagKV(ScoringPolicy):
    """Keep the tokens whose keys and values stand out from those of the next `lag` tokens, a like share of each `lag`.

    Behind the sinks, slots are cut into partitions of `lag`. Channels of keys and of values are scaled by the least
    and the largest of the next partition; a slot's score is the softmax over its partition of the standard deviation
    over channels, keys' plus values'. Ranks are within the partition; what has no next one stays first, newest first.
    """

    name: ClassVar[str] = "lagkv"
    paper: ClassVar[str] = "arXiv:2504.04704"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(), Values())

    sinks: int = Field(16, ge=0, le=1024, description="First tokens of the prompt, always kept")
    lag: int = Field(128, ge=2, le=4096, description="Tokens of a partition")

    def scores(self, view: LayerView) -> Tensor:
        scores = torch.ones_like(view.positions, dtype=torch.float32)
        end = view.num_slots - max(0, view.num_slots - self.sinks) % self.lag
        if end >= self.sinks + 2 * self.lag:
            parts = (x[:, self.sinks : end].unflatten(1, (-1, self.lag)) for x in (view.keys, view.values))
            order = torch.stack([_standing_out(part) for part in parts]).sum(dim=0).argsort(dim=-1, stable=True)
            scores[:, self.sinks : end - self.lag] = order.argsort(dim=-1).flatten(1) / self.lag
        return scores


def _standing_out(parts: Tensor) -> Tensor:
    """(H, p, lag, D) -> (H, p - 1, lag): of all partitions but the last."""
    low, high = parts[:, 1:].amin(dim=2, keepdim=True), parts[:, 1:].amax(dim=2, keepdim=True)
    return ((parts[:, :-1] - low) / (high - low).clamp(min=1e-6)).std(dim=-1).softmax(dim=-1)

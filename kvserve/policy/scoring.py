"""Policies that rank the slots of each KV head."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy.base import Policy
from kvserve.policy.view import LayerView


class RankingPolicy(Policy):
    """A policy that keeps the highest ranked slots of each KV head. It can be wrapped: see kvserve.policy.wrapping."""

    weights: ClassVar[bool] = False  # whether ranks are attention that slots got, so that they may be multiplied

    def ranks(self, view: LayerView, keep: int) -> Tensor:
        """(H, n) float32, higher = keep; infinite for slots that are always kept."""
        raise NotImplementedError

    def select(self, view: LayerView, keep: int) -> Tensor:
        return top_slots(self.ranks(view, keep), keep)


class ScoringPolicy(RankingPolicy):
    """A policy that scores the slots of each KV head; sinks and recent tokens are always kept."""

    sinks: int = Field(4, ge=0, le=1024, description="First tokens of the prompt, always kept")
    recent: int = Field(32, ge=1, le=4096, description="Newest tokens, always kept")

    @property
    def protected(self) -> int:
        return self.sinks + self.recent

    def scores(self, view: LayerView) -> Tensor:
        """(H, n), higher = keep."""
        raise NotImplementedError

    def ranks(self, view: LayerView, keep: int) -> Tensor:
        scores = self.scores(view).to(torch.float32).clone()
        if scores.shape != view.positions.shape or bool(scores.isnan().any()):
            raise ValueError(
                f"scores are of shape {tuple(scores.shape)}, NaN among them: {bool(scores.isnan().any())}; "
                f"allowed: numbers of shape {tuple(view.positions.shape)}"
            )
        recent = min(self.recent, keep)
        scores[:, view.num_slots - recent :] = math.inf
        scores[view.positions < min(self.sinks, keep - recent)] = math.inf
        return scores


def top_slots(scores: Tensor, keep: int) -> Tensor:
    """(H, n) scores -> (H, keep) slots with the highest ones, ascending; of equals the newer slot wins."""
    n = scores.shape[1]
    order = torch.sort(scores.flip(1), dim=1, descending=True, stable=True).indices[:, :keep]
    return (n - 1 - order).sort(dim=1).values

"""Two policies in a package of their own; docs/write-a-policy.md explains them step by step."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, Queries, ScoringPolicy, Values


class AnyTokens(ScoringPolicy):
    """Keep any tokens: the smallest policy that can be loaded."""

    name: ClassVar[str] = "any-tokens"

    def scores(self, view: LayerView) -> Tensor:
        generator = torch.Generator().manual_seed(view.layer)
        return torch.rand(view.positions.shape, generator=generator).to(view.positions.device)


class ValueNorm(ScoringPolicy):
    """Keep the tokens that the last queries attend to, weighted by how much their values would add.

    Score = mean attention of the last `window` queries times |V|^power.
    """

    name: ClassVar[str] = "value-norm"
    window: int = Field(16, ge=1, le=512, description="Last queries that vote")
    power: float = Field(1.0, ge=0, le=4, description="Weight of the value norm; 0 leaves attention alone")

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return Keys(), Values(), Queries(self.window)

    def scores(self, view: LayerView) -> Tensor:
        attention = view.per_head(lambda probs, _: probs.mean(dim=(0, 1)), last=self.window)
        return attention * view.values.norm(dim=-1) ** self.power

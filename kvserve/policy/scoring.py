"""The bases of most policies: ranking slots, reading attention mass, budgets that differ by layer."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy.base import Policy
from kvserve.policy.errors import PolicyError
from kvserve.policy.types import Facts
from kvserve.policy.view import LayerView


class ScoringPolicy(Policy):
    """A policy that ranks the slots of each KV head; sinks and recent tokens are always kept."""

    sinks: int = Field(4, ge=0, le=1024, description="First tokens of the prompt, always kept")
    recent: int = Field(32, ge=1, le=4096, description="Newest tokens, always kept")

    @property
    def protected(self) -> int:
        return self.sinks + self.recent

    def scores(self, view: LayerView) -> Tensor:
        """(H, n), higher = keep."""
        raise NotImplementedError

    def select(self, view: LayerView, keep: int) -> Tensor:
        scores = self.scores(view).to(torch.float32).clone()
        if scores.shape != view.positions.shape or bool(scores.isnan().any()):
            raise ValueError(
                f"scores are of shape {tuple(scores.shape)}, NaN among them: {bool(scores.isnan().any())}; "
                f"allowed: numbers of shape {tuple(view.positions.shape)}"
            )
        recent = min(self.recent, keep)
        scores[:, view.num_slots - recent :] = math.inf
        scores[view.positions < min(self.sinks, keep - recent)] = math.inf
        return top_slots(scores, keep)


class GathersMass(Policy):
    """A policy that reads `mass`, whose cost for the prompt can be divided by looking at fewer queries."""

    every: int = Field(
        1,
        ge=1,
        le=64,
        description="Only each n-th query of the prompt counts, n times: an estimate of the attention mass at an "
        "n-th of its cost; 1 is exact, as in the paper",
    )

    @property
    def mass_every(self) -> int:
        return self.every


class UnevenLayers(Policy):
    """A policy that gives layers budgets of different size: it needs layers with block tables of their own."""

    granularity: Literal["layer", "group"] | None = Field(
        None,
        description="'layer': every layer gets its own budget, which needs a server with one layer per group; "
        "'group': layers that share a block table get the mean of their budgets; null: by layer where the server can, "
        "else by group, which usage.kv_cache says",
    )

    @property
    def uneven(self) -> bool:
        """Whether these parameters make budgets differ at all."""
        return True

    def bundled(self, facts: Facts) -> bool:
        return self.uneven and facts.groups < facts.num_layers

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.granularity == "layer" and self.bundled(facts):
            raise PolicyError(
                f"kv_policy {self.name!r} with granularity 'layer' gives each of the {facts.num_layers} layers a "
                f"budget of its own, but this server holds them in {facts.groups} group(s); start it with --kv-groups "
                f"{facts.num_layers}, or leave granularity out for the mean budget of each group",
                param="kv_policy.granularity",
                reason="unsupported",
            )


def top_slots(scores: Tensor, keep: int) -> Tensor:
    """(H, n) scores -> (H, keep) slots with the highest ones, ascending; of equals the newer slot wins."""
    n = scores.shape[1]
    order = torch.sort(scores.flip(1), dim=1, descending=True, stable=True).indices[:, :keep]
    return (n - 1 - order).sort(dim=1).values

"""Attention to a token matters as much as what its value adds to the layer's output."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, LayerView, OutputWeight, Values, WrappingPolicy, top_slots


class CriticalKV(WrappingPolicy):
    """Of what another policy would keep by attention, keep the share `first`; for the rest of the budget weigh
    attention by the L1 norm of the value as projected into the layer's output.

    The two stages bound how far the output moves. A slot's norm is the mean over the query heads of its KV head; in the
    second stage its rank is (attention + epsilon) * norm. Protected tokens are beside both stages. The wrapped policy's
    ranks must be attention weights.
    """

    name: ClassVar[str] = "criticalkv"
    paper: ClassVar[str] = "arXiv:2502.03805"
    reads: ClassVar[tuple[Evidence, ...]] = (Values(), OutputWeight())
    needs_weights: ClassVar[bool] = True

    first: float = Field(0.5, ge=0, le=1, description="Share of the budget that goes by attention alone (alpha)")
    epsilon: float = Field(1e-4, ge=0, le=1, description="Added to the attention, so that large values count anyway")

    def reranked(self, ranks: Tensor, view: LayerView, keep: int) -> Tensor:
        protected = int(ranks[0].isinf().sum())
        best = top_slots(ranks, protected + int(self.first * max(0, keep - protected)))
        return ((ranks + self.epsilon) * _norms(view)).scatter(1, best, torch.inf)


def _norms(view: LayerView) -> Tensor:
    """(H, n): L1 norm of each slot's projected value, one query head at a time."""
    pairs = zip(view.values, view.output_weight(), strict=True)
    return torch.stack([torch.stack([(v @ w).abs().sum(dim=-1) for w in group]).mean(dim=0) for v, group in pairs])

"""How layers spread their attention, and how much of it a budget holds."""

import torch
from torch import Tensor


def importance(attention: Tensor) -> Tensor:
    """(L, Hq, n, n) causal attention -> (L, n): summed over queries, mean over heads."""
    return attention.sum(-2).mean(1)


def gini(scores: Tensor) -> Tensor:
    """(..., n) -> (...): 0 if all are equal, near 1 if one has everything."""
    n = scores.shape[-1]
    ranked = scores.double().sort(-1).values
    weights = 2 * torch.arange(1, n + 1) - n - 1
    return (ranked * weights).sum(-1) / (n * ranked.sum(-1))


def held(scores: Tensor) -> Tensor:
    """(..., n) -> (..., n): share of the sum that the best 1, 2, ... n hold."""
    return scores.double().sort(-1, descending=True).values.cumsum(-1) / scores.double().sum(-1, keepdim=True)


def retained(scores: Tensor, budget: float) -> Tensor:
    """(..., n) -> (...): share of the sum that this share of the tokens holds at best."""
    return held(scores)[..., max(1, round(budget * scores.shape[-1])) - 1]


def prefix_shares(scores: Tensor, budget: float, halvings: int = 40) -> Tensor:
    """(..., L, n) -> (..., L): shares of the tokens that hold the same share p of each layer, of mean `budget`."""
    holds = held(scores)
    low, high = torch.zeros(scores.shape[:-2]).double(), torch.ones(scores.shape[:-2]).double()
    for _ in range(halvings):
        p = (low + high) / 2
        over = _needed(holds, p).mean(-1) > budget
        low, high = torch.where(over, low, p), torch.where(over, p, high)
    return _needed(holds, low)


def _needed(holds: Tensor, p: Tensor) -> Tensor:
    return ((holds < p[..., None, None]).sum(-1) + 1).clamp(max=holds.shape[-1]) / holds.shape[-1]

"""Do tokens that mattered go on to matter? Pivotal tokens of a text's first half, against those of its second."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from evals.claims.passes import Pass


class Shares(NamedTuple):
    """Of the first half's tokens that are pivotal later: who foresaw them. Each (L,), mean over heads."""

    persists: Tensor  # those pivotal in the first half
    chance: Tensor  # as many tokens drawn at random, on average
    recent: Tensor  # as many of the newest
    size: Tensor  # how many were pivotal in the first half, as a share of its tokens


def pivotal(attention: Tensor, start: int, tokens: int, ever: bool = False) -> Tensor:
    """(..., n, n) causal attention -> (..., tokens) bool: what got more than the average attention.

    A query that sees t tokens gives 1/t on average. Judged by the queries from `start` on that see a token: by the
    mean of (attention x t), or, with `ever`, by the one that gave most. A token's own query does not count.
    """
    rows = attention[..., start:, :tokens]
    query = torch.arange(start, attention.shape[-2])
    sees = query[:, None] > torch.arange(tokens)
    worth = (rows * (query[:, None] + 1)).masked_fill(~sees, 0)
    judged = worth.amax(-2) if ever else worth.sum(-2) / sees.sum(0).clamp(min=1)
    return judged > 1


def shares(attention: Tensor, ever: bool = False) -> Shares:
    """(L, Hq, n, n) causal attention of one text."""
    half = attention.shape[-1] // 2
    before = pivotal(attention[..., :half, :half], 0, half, ever)
    after = pivotal(attention, half, half, ever)
    size = before.float().mean(-1)  # (L, Hq)
    newest = torch.arange(half) >= half - before.sum(-1, keepdim=True)
    found = (_within(after, before), size, _within(after, newest), size)
    return Shares(*(share.nanmean(-1) for share in found))


def _within(wanted: Tensor, found: Tensor) -> Tensor:
    """Share of the wanted that were found; NaN where none is wanted."""
    return (wanted & found).sum(-1) / wanted.sum(-1)


def collect(texts: Iterable[Pass], ever: bool = False) -> Shares:
    """Of many texts: each field (texts, L)."""
    return Shares(*map(torch.stack, zip(*(shares(text.attention, ever) for text in texts), strict=True)))

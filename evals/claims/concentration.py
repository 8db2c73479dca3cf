"""How concentrated a head's queries are before RoPE: R of a band is |E q| / E|q|, 1 if all point the same way."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from evals.claims.passes import Pass


class Centre(NamedTuple):
    """Queries of each head: means over all tokens, (L, Hq, F)."""

    mean: Tensor  # complex64: E q
    modulus: Tensor  # float32: E |q|

    @property
    def strongest(self) -> Tensor:
        """(L, Hq): R of the band with the longest queries."""
        band = self.modulus.argmax(-1, keepdim=True)
        return (self.mean.abs() / self.modulus).gather(-1, band)[..., 0]

    @property
    def overall(self) -> Tensor:
        """(L, Hq): R over all bands, each by the length of its queries."""
        return self.mean.abs().sum(-1) / self.modulus.sum(-1)


def centre(texts: Iterable[Pass]) -> Centre:
    total, moduli, count = torch.zeros(()), torch.zeros(()), 0
    for text in texts:
        total = total + text.queries.sum(1)
        moduli = moduli + text.queries.abs().sum(1)
        count += text.queries.shape[1]
    return Centre(total / count, moduli / count)


def alike(one: Centre, other: Centre) -> Tensor:
    """(L, Hq): cosine of two centres of each head."""
    product = (one.mean * other.mean.conj()).real.sum(-1)
    return product / (_length(one.mean) * _length(other.mean))


def _length(centres: Tensor) -> Tensor:
    return centres.abs().square().sum(-1).sqrt()

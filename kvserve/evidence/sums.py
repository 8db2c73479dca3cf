"""Sums over the queries of one request in one layer: attention mass, and moments of its queries before RoPE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvserve.evidence.mass import column_sums
from kvserve.evidence.observer import Layer
from kvserve.evidence.queries import FOLD
from kvserve.policy.rope import Rope
from kvserve.policy.view import QuerySums

SINKS = 4  # first tokens, whose queries do not count for moments: their attention is not like the others'


@dataclass
class Sums:
    """What one layer of one request has gathered."""

    upto: int = 0  # queries before this logical position are counted
    mass: Tensor | None = None  # (H, G, room)
    moments: QuerySums | None = None
    bands: tuple[int, Tensor, Tensor] | None = None  # count, sum (Hq, R) complex64, sum of moduli (Hq, R)

    def add(
        self, names: tuple[str, ...], layer: Layer, queries: Tensor, keys: Tensor, position: int, first: int, every: int
    ) -> None:  # fmt: skip
        """Count queries (W, Hq, D) of positions `position` ... and slots `first` ...; keys (H, n, D) of all slots held.

        every: mass is estimated from the queries at multiples of this.
        """
        self.upto = position + len(queries)
        if "mass" in names:
            skip = -position % every
            some = queries[skip::every]
            if len(some):
                self._add_mass(column_sums(some, keys, layer.softmax, first + skip, every) * every)
        skip = max(0, SINKS - position)
        if layer.rope is None or skip >= len(queries):
            return
        for name, add in (("moments", self._add_moments), ("bands", self._add_bands)):
            if name in names:
                at = torch.arange(position + skip, position + len(queries), device=queries.device)
                add(layer.rope.undo(queries[skip:], at), layer.rope)

    def mass_of(self, slots: int) -> Tensor | None:
        """(H, slots, G): what each slot got."""
        if self.mass is None:
            return None
        return _with_room(self.mass, slots)[:, :, :slots].transpose(1, 2)

    def compacted(self, stay: Tensor) -> None:
        """The slots `stay` (H, keep) are what is left: the mass of the others is forgotten."""
        if self.mass is not None:
            mass = _with_room(self.mass, int(stay.max()) + 1)
            self.mass = mass.gather(2, stay[:, None].expand(-1, mass.shape[1], -1))

    def _add_mass(self, fresh: Tensor) -> None:
        slots = fresh.shape[2]
        if self.mass is None:
            self.mass = fresh
            return
        self.mass = _with_room(self.mass, slots)
        self.mass[:, :, :slots] += fresh

    def _add_moments(self, queries: Tensor, rope: Rope) -> None:
        total, outer = queries.sum(0), torch.einsum("whd,whe->hde", queries, queries)
        before = self.moments
        if before is not None:
            total, outer = before.total + total, before.outer + outer
        self.moments = QuerySums(len(queries) + (before.count if before else 0), total, outer)

    def _add_bands(self, queries: Tensor, rope: Rope) -> None:
        bands = rope.bands(queries)
        total, moduli = bands.sum(0), bands.abs().sum(0)
        count = len(queries)
        if self.bands is not None:
            count, total, moduli = count + self.bands[0], total + self.bands[1], moduli + self.bands[2]
        self.bands = (count, total, moduli)


def _with_room(mass: Tensor, slots: int) -> Tensor:
    if mass.shape[2] >= slots:
        return mass
    grown = mass.new_zeros(*mass.shape[:2], slots + FOLD)
    grown[:, :, : mass.shape[2]] = mass
    return grown

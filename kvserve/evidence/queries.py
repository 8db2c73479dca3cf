"""The last queries of the requests whose policy wants to see them, captured as attention runs."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvserve.cache.records import NO_DRAFTS, Drafts, Location, Record, Span
from kvserve.evidence.observer import Layer, Observer
from kvserve.policy import LayerView

FOLD = 128  # generated tokens whose queries are counted together: see kvserve.evidence.gather


class _Seat(NamedTuple):
    base: int  # first row in the rings
    window: int
    rows: int  # the window's, and one for each token that may be drafted beyond it
    first: int  # first position computed here: a prefix hit skips queries


class _HeldQueries(NamedTuple):
    first: int  # position of the first one
    end: int
    layers: dict[int, Tensor]  # (rows, Hq, D)


class QueryRings(Observer):
    """One ring of rows per request and layer; position p lies in row base + p % rows.

    Rows exist only for requests that asked for them: as many as the window that is looked at has tokens, and with
    speculative decoding those of the drafts, whose queries must not take the place of older ones before they are
    accepted. All layers of a step store with the same two index vectors, so a captured step costs one `index_copy_`
    per layer, and a step without takers nothing.
    """

    late: ClassVar[bool] = True

    def __init__(self, device: torch.device, drafts: Drafts = NO_DRAFTS) -> None:
        self._device = device
        self._drafts = drafts
        self._rings: dict[int, Tensor] = {}  # layer -> (rows, Hq, D)
        self._free: dict[int, list[int]] = {}  # rows -> bases of seats that are free again
        self._rows = self._taken = 0
        self._from = self._to = torch.empty(0, dtype=torch.long)
        self._seats: tuple[Tensor, Tensor] | None = None  # of each token of `_from`: first row and rows of its ring

    # -- a request -----------------------------------------------------------------------------------

    def begin(self, record: Record, first: int) -> None:
        """Give a request a ring if its policy reads queries, or has them counted late."""
        asks = record.asks
        window = max(asks.query_window, FOLD if asks.gathers and asks.observes == "all" else 0)
        if not window:
            return
        rows = window + self._drafts.tokens + self._drafts.unseen
        spare = self._free.get(rows)
        if spare:
            base = spare.pop()
        else:
            base, self._rows = self._rows, self._rows + rows
        self._taken += 1
        record.observed[self] = _Seat(base, window, rows, first)

    def end(self, record: Record) -> None:
        seat: _Seat = record.observed[self]
        self._taken -= 1
        self._free.setdefault(seat.rows, []).append(seat.base)

    def __len__(self) -> int:
        return self._taken

    # -- a step --------------------------------------------------------------------------------------

    def begin_step(self, spans: Sequence[Span]) -> bool:
        """Work out once, for all layers, which tokens of the step go to which rows."""
        if not spans:
            return False
        seats: list[_Seat] = [span.record.observed[self] for span in spans]
        table = np.array(
            [(s.row, s.position, s.count, seat.base, seat.rows) for s, seat in zip(spans, seats, strict=True)]
        )
        stay = np.minimum(table[:, 2], table[:, 4])  # the last tokens of each span
        row, position, count, base, rows = table.repeat(stay, axis=0).T
        index = count - (stay.cumsum().repeat(stay) - np.arange(len(count)))  # of a token in its span
        self._from = torch.from_numpy(row + index).to(self._device)
        self._to = torch.from_numpy((position + index) % rows + base).to(self._device)
        if self._drafts.unseen:
            self._seats = torch.from_numpy(base).to(self._device), torch.from_numpy(rows).to(self._device)
        return True

    def _settle(self) -> None:
        """Positions were guessed when the step began, if drafts were in flight; its layers run on the true ones."""
        if self._seats is not None:
            assert self._drafts.positions is not None
            base, rows = self._seats
            self._to, self._seats = self._drafts.positions[self._from] % rows + base, None

    def before(self, layer: Layer, query: Tensor) -> None:
        self._settle()
        ring = self._rings.get(layer.index)
        if ring is None or len(ring) < self._rows:
            ring = self._rings[layer.index] = self._grown(ring, query)
        ring.index_copy_(0, self._to, query[self._from])

    def _grown(self, ring: Tensor | None, query: Tensor) -> Tensor:
        rows = max(self._rows, 2 * len(ring) if ring is not None else 0)
        grown = torch.zeros(rows, *query.shape[1:], dtype=query.dtype, device=query.device)
        if ring is not None:
            grown[: len(ring)] = ring
        return grown

    # -- a shared prefix -----------------------------------------------------------------------------

    def hold(self, record: Record, logical: int) -> _HeldQueries:
        seat: _Seat = record.observed[self]
        start, rows = self._rows_of(seat, logical)
        return _HeldQueries(start, logical, {index: ring[rows.to(ring.device)] for index, ring in self._rings.items()})

    def resume(self, record: Record, held: _HeldQueries) -> None:
        seat: _Seat = record.observed[self]
        record.observed[self] = seat = seat._replace(first=held.first)
        _, rows = self._rows_of(seat, held.end)
        for index, queries in held.layers.items():
            ring = self._rings.get(index)
            if ring is None or len(ring) < self._rows:
                ring = self._rings[index] = self._grown(ring, queries)
            ring.index_copy_(0, rows.to(ring.device), queries)

    # -- a compaction --------------------------------------------------------------------------------

    def show(self, view: LayerView, record: Record, layer: Layer, where: Location) -> None:
        view.queries, view.query_positions = self.last(record, layer, where.logical)

    def last(self, record: Record, layer: Layer, logical: int) -> tuple[Tensor | None, Tensor | None]:
        """Captured queries (W, Hq, D) float32 and positions (W,), oldest first, up to position logical - 1."""
        seat: _Seat | None = record.observed.get(self)
        ring = self._rings.get(layer.index)
        if seat is None or ring is None:
            return None, None
        start, rows = self._rows_of(seat, logical)
        return ring[rows.to(ring.device)].float(), torch.arange(start, logical, device=ring.device)

    def _rows_of(self, seat: _Seat, logical: int) -> tuple[int, Tensor]:
        """The first position of the window that ends before `logical`, and the rows of all of it."""
        start = max(seat.first, logical - seat.window)
        return start, torch.arange(start, logical) % seat.rows + seat.base

"""The last queries of the requests whose policy wants to see them, captured as attention runs."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one request in the batch of a step."""

    req_id: str
    row: int  # index of the first one among the step's tokens
    position: int  # its logical position
    count: int


class _Seat(NamedTuple):
    base: int  # first row in the rings
    window: int


class QueryRings:
    """One ring of `window` rows per request and layer; position p lies in row base + p % window.

    Rows exist only for requests that asked for them. All layers of a step store with the same two index
    vectors, so a captured step costs one `index_copy_` per layer, and a step without takers nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rings: dict[int, Tensor] = {}  # layer -> (rows, Hq, D)
        self._seats: dict[str, _Seat] = {}
        self._free: dict[int, list[int]] = {}  # window -> bases of seats that are free again
        self._rows = 0
        self._first: dict[str, int] = {}  # first position computed here: a prefix hit skips queries
        self._from = self._to = torch.empty(0, dtype=torch.long)
        self.active = False

    # -- a request -----------------------------------------------------------------------------------

    def seat(self, req_id: str, window: int, first: int) -> None:
        """Give a request a ring, or restart the one that it has, from logical position `first`."""
        self._first[req_id] = first
        if req_id in self._seats:
            return
        spare = self._free.get(window)
        if spare:
            base = spare.pop()
        else:
            base, self._rows = self._rows, self._rows + window
        self._seats[req_id] = _Seat(base, window)

    def leave(self, req_id: str) -> None:
        seat = self._seats.pop(req_id, None)
        self._first.pop(req_id, None)
        if seat is not None:
            self._free.setdefault(seat.window, []).append(seat.base)

    # -- a step --------------------------------------------------------------------------------------

    def begin_step(self, spans: list[Span]) -> None:
        """Work out once, for all layers, which tokens of the step go to which rows."""
        source: list[Tensor] = []
        target: list[Tensor] = []
        for span in spans:
            seat = self._seats.get(span.req_id)
            if seat is None:
                continue
            skip = max(0, span.count - seat.window)
            index = torch.arange(skip, span.count)
            source.append(index + span.row)
            target.append((index + span.position) % seat.window + seat.base)
        self.active = bool(source)
        if self.active:
            self._from = torch.cat(source).to(self._device)
            self._to = torch.cat(target).to(self._device)

    def store(self, layer: int, query: Tensor) -> None:
        """Called by the attention of each layer: query (tokens, Hq, D), post-RoPE."""
        ring = self._rings.get(layer)
        if ring is None or len(ring) < self._rows:
            ring = self._grown(ring, query)
            self._rings[layer] = ring
        ring.index_copy_(0, self._to, query[self._from])

    def _grown(self, ring: Tensor | None, query: Tensor) -> Tensor:
        rows = max(self._rows, 2 * len(ring) if ring is not None else 0)
        grown = torch.zeros(rows, *query.shape[1:], dtype=query.dtype, device=query.device)
        if ring is not None:
            grown[: len(ring)] = ring
        return grown

    # -- a compaction --------------------------------------------------------------------------------

    def last(self, req_id: str, layer: int, logical: int) -> tuple[Tensor | None, Tensor | None]:
        """Captured queries (W, Hq, D) float32 and positions (W,), oldest first, up to position logical - 1."""
        seat, ring = self._seats.get(req_id), self._rings.get(layer)
        if seat is None or ring is None:
            return None, None
        start = max(self._first[req_id], logical - seat.window)
        positions = torch.arange(start, logical)
        rows = (positions % seat.window + seat.base).to(ring.device)
        return ring[rows].float(), positions.to(ring.device)

    def __len__(self) -> int:
        return len(self._seats)

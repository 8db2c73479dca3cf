"""Summary tokens (Kwai Summary Attention, arXiv:2604.24432): what the model itself makes of a chunk of text.

A summary sees the text of its own chunk and itself, in every layer, and nothing else. So it needs no row of the running
sequence: all summaries that are due are computed in a pass of their own over the text that is cached. Two occasions:

- a chunk leaves the window while text is generated: before the step, for all requests at once (`complete`), whereupon
  the policy puts the summaries in the place of the chunk's text;
- chunks leave the window within a step that reads many tokens: layer by layer, as attention runs, since their text
  is only just being read (`after_attention`). The same call does the attention of that text over again: no query may
  see text beyond its own window, which is there still, nor miss the summaries, which are not there yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvserve.gather import Layer
from kvserve.held import Cache, Held
from kvserve.plan import Plan
from kvserve.queries import Span
from kvserve.summary_layer import SummaryLayer
from kvserve.terms import Summaries

TILE = 64  # queries at a time


class Due(NamedTuple):
    """Chunks [first, last) of a request, whose text is in its cache."""

    req_id: str
    caches: Mapping[int, Cache]  # by group
    first: int
    last: int


@dataclass
class Made:
    """Summaries of one request that are not in its cache yet: those of chunks `first`, `first` + 1, ..."""

    first: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # as stored, (H, m, D) each

    def forget(self, before: int) -> None:
        """Those of chunks below `before` are in the cache, or will not be asked for."""
        skip = before - self.first
        if skip > 0:
            self.layers = {i: (keys[:, skip:], values[:, skip:]) for i, (keys, values) in self.layers.items()}
            self.first = before


class Reading(NamedTuple):
    """A request that reads text in a step, some of which must not see all that the cache holds then."""

    span: Span
    caches: Mapping[int, Cache]  # by group, once the text is in it
    window: int | None  # chunks


class SummaryMaker:
    """Computes summaries on this worker, and the attention of text that must see some of them."""

    def __init__(self, about: Summaries, embedding: Tensor, layers: Sequence[SummaryLayer]) -> None:
        self._chunk, self._kinds = about.chunk, about.layers
        self._embedding, self._layers = embedding, layers
        self._made: dict[str, Made] = {}
        self._readings: list[Reading] = []
        self._rows = _Rows(about.chunk, [], embedding)

    @property
    def active(self) -> bool:
        """Whether the coming step has text whose attention is done here."""
        return bool(self._readings)

    # -- a request -----------------------------------------------------------------------------------

    def begin(self, req_id: str) -> None:
        self._made[req_id] = Made()

    def end(self, req_id: str) -> None:
        self._made.pop(req_id, None)

    def __contains__(self, req_id: str) -> bool:
        return req_id in self._made

    def __len__(self) -> int:
        return len(self._made)

    # -- a compaction --------------------------------------------------------------------------------

    def due(self, plan: Plan, caches: Mapping[int, Cache]) -> Due:
        """What a compaction asks for: summaries for all the text that it lets go."""
        return Due(plan.req_id, caches, self._cached_of(caches), (plan.logical - plan.keep) // (self._chunk - 1))

    def complete(self, due: Sequence[Due]) -> None:
        """Make what is asked for and not made yet, in one pass."""
        rows = _Rows(self._chunk, [each for one in due if (each := self._missing(one)) is not None], self._embedding)
        if rows:
            for layer in self._layers:
                self._pass(layer, rows)

    def _missing(self, due: Due) -> Due | None:
        made = self._made[due.req_id]
        made.forget(due.first)
        have = made.first + next((keys.shape[1] for keys, _ in made.layers.values()), 0)
        return due._replace(first=have) if have < due.last else None

    def of(self, req_id: str, layer: Layer, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values (H, last - first, D) float32 of these chunks' summaries, which must have been made."""
        made = self._made[req_id]
        keys, values = (part[:, first - made.first : last - made.first] for part in made.layers[layer.index])
        if keys.shape[1] != last - first:
            raise RuntimeError(f"summaries of chunks {first} to {last} of {req_id} were not made")
        return layer.slots.keys.decode(keys), layer.slots.values.decode(values)

    def _pass(self, layer: SummaryLayer, rows: "_Rows") -> None:
        """Take the rows through one layer and keep their keys and values."""
        q, k, v = layer.project(rows.x, rows.positions)
        slots = layer.layer.slots
        kept = slots.keys.encode(k.float()), slots.values.encode(v.float())
        text = rows.text(layer.layer)
        rows.x = layer.finish(rows.x, layer.attend(q, slots.keys.decode(kept[0]), slots.values.decode(kept[1]), *text))
        start = 0
        for due in rows.due:
            end = start + due.last - due.first
            fresh = [part[start:end].transpose(0, 1) for part in kept]
            layers, index, start = self._made[due.req_id].layers, layer.layer.index, end
            if index in layers:
                fresh = [torch.cat(pair, dim=1) for pair in zip(layers[index], fresh, strict=True)]
            layers[index] = (fresh[0], fresh[1])

    # -- a step --------------------------------------------------------------------------------------

    def needs(self, span: Span, held: Held) -> bool:
        """Whether some of these tokens must not see what the cache holds once they are in it."""
        return self._gone(span.position + span.count - 1, held.policy.text_window) > self._cached(held)

    def begin_step(self, readings: list[Reading]) -> None:
        """`readings`: of the spans of the coming step that `needs` said yes to."""
        self._readings = readings
        due = [
            Due(span.req_id, caches, self._cached_of(caches), self._gone(span.position + span.count - 1, window))
            for span, caches, window in readings
        ]
        missing = [each for one in due if (each := self._missing(one)) is not None]
        self._rows = _Rows(self._chunk, missing, self._embedding)

    def after_attention(self, layer: Layer, query: Tensor, output: Tensor) -> None:
        """Query (tokens, Hq, D) of a step and what attention made of it; the rows of our readings are written anew."""
        if self._rows:
            self._pass(self._layers[layer.index], self._rows)
        if self._kinds[layer.index] == "full":
            return
        for reading in self._readings:
            rows = slice(reading.span.row, reading.span.row + reading.span.count)
            seen = self._attention(layer, reading, query[rows])
            output[rows] = seen.reshape(output[rows].shape).to(output.dtype)

    def _attention(self, layer: Layer, reading: Reading, query: Tensor) -> Tensor:
        """(count, Hq, D): attention on the text in each query's window and the summaries before it."""
        cache, span, chunk = reading.caches[layer.group], reading.span, self._chunk
        cached = self._cached_of(reading.caches)
        made = self._made[span.req_id].layers.get(layer.index)
        summaries, text = [], []
        for i, tokens in enumerate(layer.slots):
            held = tokens.decode(tokens.read(cache.blocks, cache.slots))
            fresh = [] if made is None else [tokens.decode(made[i])]
            summaries.append(torch.cat([held[:, :cached], *fresh], dim=1))
            text.append(held[:, cached:])
        parts = []
        for start in range(span.position, span.position + span.count, TILE):
            end = min(start + TILE, span.position + span.count)
            at = torch.arange(start, end, device=query.device)
            gone = (at // chunk - (reading.window or 0)).clamp(min=0)  # chunks that each query sees as summaries
            low, high = int(gone[0]), int(gone[-1])
            places = torch.arange(low * chunk, end, device=query.device)
            seen = torch.cat([
                torch.arange(high, device=query.device) < gone[:, None],
                (places >= gone[:, None] * chunk) & (places <= at[:, None]),
            ], dim=1)  # fmt: skip
            shown = slice((low - cached) * chunk, end - cached * chunk)
            keys, values = (torch.cat([s[:, :high], t[:, shown]], dim=1) for s, t in zip(summaries, text, strict=True))
            q = query[start - span.position : end - span.position].transpose(0, 1).to(keys.dtype)
            parts.append(
                F.scaled_dot_product_attention(
                    q[None], keys[None], values[None], attn_mask=seen, scale=layer.scale, enable_gqa=True
                )[0].transpose(0, 1)
            )
        return torch.cat(parts)

    # -- arithmetic ----------------------------------------------------------------------------------

    def _gone(self, position: int, window: int | None) -> int:
        """Chunks that have left the window of the token at `position`."""
        return 0 if window is None else max(0, position // self._chunk - window)

    def _cached(self, held: Held) -> int:
        """Summaries in a request's cache: each took the place of a chunk, in the layers that have them."""
        return max(held.offset.values(), default=0) // (self._chunk - 1)

    def _cached_of(self, caches: Mapping[int, Cache]) -> int:
        return max(cache.logical - cache.slots for cache in caches.values()) // (self._chunk - 1)


class _Rows:
    """Summary rows on their way through the layers; `x` is their hidden state, (r, d)."""

    def __init__(self, chunk: int, due: list[Due], embedding: Tensor) -> None:
        self.due, self._chunk = due, chunk
        last = [chunk * (index + 1) - 1 for one in due for index in range(one.first, one.last)]
        self.positions = torch.tensor(last, device=embedding.device)
        self.x = embedding.expand(len(last), -1)

    def __bool__(self) -> bool:
        return bool(self.due)

    def text(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Keys and values (r, H, C, D) float32 of each row's chunk."""
        parts: list[list[Tensor]] = [[], []]
        for _, caches, first, last in self.due:
            cache = caches[layer.group]
            at = torch.arange(first * self._chunk, last * self._chunk, device=cache.blocks.device)
            slots = (at - (cache.logical - cache.slots)).expand(layer.num_kv_heads, -1)
            for part, tokens in zip(parts, layer.slots, strict=True):
                found = tokens.decode(tokens.pick(cache.blocks, slots))
                part.append(found.unflatten(1, (-1, self._chunk)).transpose(0, 1))
        return torch.cat(parts[0]), torch.cat(parts[1])

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
from torch import Tensor

from kvserve.engine.plan import Plan
from kvserve.engine.records import Cache, Held
from kvserve.evidence.gather import Layer
from kvserve.evidence.queries import Span
from kvserve.policy.types import Summaries
from kvserve.summary.attention import Sight, Window, attention
from kvserve.summary.layer import SummaryLayer


class Due(NamedTuple):
    """Chunks [first, last) of a request, whose text is in its cache."""

    req_id: str
    caches: Mapping[int, Cache]  # by group
    first: int
    last: int


@dataclass
class Made:
    """What is known of one request; its summaries that are not in its cache yet: of chunks `first`, `first` + 1, ..."""

    window: Window
    lost: int  # entries that a summary layer loses with each chunk: all but one, or all if no summaries are seen
    first: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # as stored, (H, m, D) each

    @property
    def summarised(self) -> bool:
        return self.lost < self.window.chunk

    @property
    def last(self) -> int:
        """The chunk after those that have been made."""
        return self.first + next((keys.shape[1] for keys, _ in self.layers.values()), 0)

    def forget(self, before: int) -> None:
        """Those of chunks below `before` are in the cache, or will not be asked for."""
        skip = before - self.first
        if skip > 0:
            self.layers = {i: (keys[:, skip:], values[:, skip:]) for i, (keys, values) in self.layers.items()}
            self.first = before

    def add(self, layer: int, fresh: Sequence[Tensor]) -> None:
        """Keys and values (H, r, D) of the next r chunks in one layer."""
        if layer in self.layers:
            fresh = [torch.cat(pair, dim=1) for pair in zip(self.layers[layer], fresh, strict=True)]
        self.layers[layer] = (fresh[0], fresh[1])


class Reading(NamedTuple):
    """A request that reads text in a step, some of which must not see all that the cache holds then."""

    span: Span
    caches: Mapping[int, Cache]  # by group, once the text is in it


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

    def begin(self, req_id: str, chunks: int, summarised: bool) -> None:
        """A request starts, or starts again; chunks: its window."""
        self._made[req_id] = Made(Window(self._chunk, chunks), self._chunk - summarised)

    def end(self, req_id: str) -> None:
        self._made.pop(req_id, None)

    def __contains__(self, req_id: str) -> bool:
        return req_id in self._made

    def __len__(self) -> int:
        return len(self._made)

    # -- a compaction --------------------------------------------------------------------------------

    def due(self, plan: Plan, caches: Mapping[int, Cache]) -> Due:
        """What a compaction asks for: summaries for all the text that it lets go. ValueError for parts of chunks."""
        lost = self._made[plan.req_id].lost
        chunks, rest = divmod(plan.logical - plan.keep, lost)
        if rest or chunks * self._chunk > plan.logical:
            raise ValueError(
                f"due gave {plan.keep} of {plan.logical}; allowed: {lost} less for each whole chunk of text"
            )
        return Due(plan.req_id, caches, _gone(caches, lost), chunks)

    def complete(self, due: Sequence[Due]) -> None:
        """Make what is asked for and not made yet, in one pass."""
        rows = self._missing(due)
        if rows:
            for layer in self._layers:
                self._pass(layer, rows)

    def _missing(self, due: Sequence[Due]) -> "_Rows":
        missing = []
        for one in due:
            made = self._made[one.req_id]
            made.forget(one.first)
            if made.summarised and made.last < one.last:
                missing.append(one._replace(first=made.last))
        return _Rows(self._chunk, missing, self._embedding)

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
            self._made[due.req_id].add(layer.layer.index, [part[start:end].transpose(0, 1) for part in kept])
            start = end

    # -- a step --------------------------------------------------------------------------------------

    def needs(self, span: Span, held: Held) -> bool:
        """Whether some of these tokens must not see what the cache holds once they are in it."""
        made = self._made[span.req_id]
        cached = max(held.offset.values(), default=0) // made.lost
        return made.window.gone(span.position + span.count - 1) > cached

    def begin_step(self, readings: list[Reading]) -> None:
        """`readings`: of the spans of the coming step that `needs` said yes to."""
        if not readings and not self._readings:
            return
        self._readings, due = readings, []
        for span, caches in readings:
            made = self._made[span.req_id]
            last = made.window.gone(span.position + span.count - 1)
            due.append(Due(span.req_id, caches, _gone(caches, made.lost), last))
        self._rows = self._missing(due)

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
        cache, made = reading.caches[layer.group], self._made[reading.span.req_id]
        gone = _gone(reading.caches, made.lost)
        cached, sights = gone * made.summarised, []
        for i, tokens in enumerate(layer.slots):
            held = tokens.decode(tokens.read(cache.blocks, cache.slots))
            fresh = [tokens.decode(made.layers[layer.index][i])] if layer.index in made.layers else []
            sights.append(Sight(torch.cat([held[:, :cached], *fresh], dim=1), held[:, cached:]))
        keys, values = sights
        return attention(query, reading.span.position, keys, values, gone, made.window, layer.softmax.scale)


def _gone(caches: Mapping[int, Cache], lost: int) -> int:
    """Chunks that are not cached as text any more, in the layers that summarise."""
    return max(cache.logical - cache.slots for cache in caches.values()) // lost


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

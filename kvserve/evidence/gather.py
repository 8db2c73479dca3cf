"""Evidence that adds up over all queries of a request: attention mass, and moments of its queries before RoPE.

The queries of a prompt chunk are counted as attention runs, when they and the keys are at hand. A generated
token's query waits in its ring and is counted with up to FOLD others: at a compaction, or when the ring is
full. The cache only grows in between, so counting late gives what counting at once would have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kvserve.engine.records import Cache
from kvserve.engine.slots import Slots
from kvserve.evidence.mass import Softmax, column_sums
from kvserve.evidence.queries import QueryRings, Span
from kvserve.policy.requirements import Asks
from kvserve.policy.rope import Rope
from kvserve.policy.view import LayerView, Moments

FOLD = 128  # generated tokens whose queries are counted together
SINKS = 4  # first tokens, whose queries do not count for moments: their attention is not like the others'


@dataclass(frozen=True)
class Layer:
    """One compressible attention layer of this worker."""

    index: int  # among the compressible layers, in model order
    group: int
    slots: Slots
    num_kv_heads: int  # local
    softmax: Softmax
    rope: Rope | None = None
    calibration: dict[str, Tensor] | None = None


class Prompt(NamedTuple):
    """Prompt tokens of one request in the batch of a step, and where its cache lies once they have run."""

    span: Span
    caches: Mapping[int, Cache]  # by group


@dataclass
class Sums:
    """What one layer of one request has gathered."""

    upto: int = 0  # queries before this logical position are counted
    mass: Tensor | None = None  # (H, G, room)
    moments: Moments | None = None
    bands: tuple[int, Tensor, Tensor] | None = None  # count, sum (Hq, R) complex64, sum of moduli (Hq, R)


@dataclass
class Gathered:
    """A request that gathers evidence."""

    asks: Asks
    names: tuple[str, ...]
    prompt: int
    layers: dict[int, Sums] = field(default_factory=dict)
    error: Exception | None = None  # why nothing more is counted; raised when the evidence is looked at


class Gatherer:
    """Counts the queries of the requests that ask for it."""

    def __init__(self, queries: QueryRings) -> None:
        self.requests: dict[str, Gathered] = {}
        self.extra: tuple[str, ...] = ()  # gathered of every request beside what its policy reads: calibration
        self._queries = queries
        self._prompts: list[Prompt] = []

    @property
    def active(self) -> bool:
        """Whether the coming step has prompt tokens to count."""
        return bool(self._prompts)

    # -- a request -----------------------------------------------------------------------------------

    def begin(self, req_id: str, asks: Asks, prompt: int) -> None:
        if asks.gathers:
            self.requests[req_id] = Gathered(asks, asks.gathers + self.extra, prompt)

    def end(self, req_id: str) -> None:
        self.requests.pop(req_id, None)

    # -- a step --------------------------------------------------------------------------------------

    def begin_step(self, prompts: list[Prompt]) -> None:
        """`prompts`: those of the coming step that `wants` said yes to."""
        self._prompts = prompts

    def wants(self, span: Span) -> bool:
        """Whether these tokens' queries are to be counted as attention runs."""
        known = self.requests.get(span.req_id)
        if known is None:
            return False
        return span.position < known.prompt or (span.count > 1 and known.asks.observes == "all")

    def waiting(self, span: Span) -> bool:
        """Whether the ring would lose a query that is not counted yet when these tokens' are stored or counted."""
        known = self.requests.get(span.req_id)
        if known is None or known.asks.observes != "all" or span.position <= known.prompt:
            return False
        room = FOLD if span.count == 1 else 1  # several at once are counted as attention runs, in their order
        return any(span.position - sums.upto >= room for sums in known.layers.values())

    def after_attention(self, layer: Layer, query: Tensor) -> None:
        """Count the prompt queries of a step: query (tokens, Hq, D), post-RoPE; their keys are cached."""
        for span, caches in self._prompts:
            known = self.requests[span.req_id]
            if known.error is not None:
                continue
            try:
                self._count_prompt(known, layer, query, span, caches[layer.group])
            except Exception as error:  # this request's, and no other's
                known.error = error

    def _count_prompt(self, known: Gathered, layer: Layer, query: Tensor, span: Span, cache: Cache) -> None:
        count = span.count
        if known.asks.observes == "prompt":
            count = min(count, known.prompt - span.position)
        keys = layer.slots.keys.decode(layer.slots.keys.read(cache.blocks, cache.slots))
        queries = query[span.row : span.row + count]
        self._count(known, layer, queries, keys, span.position, cache.slots - span.count)

    def catch_up(self, req_id: str, layer: Layer, logical: int, view: LayerView) -> None:
        """Count the generated tokens' queries that wait in the ring; `view` has the keys of all slots held."""
        known = self.requests[req_id]
        upto = known.layers[layer.index].upto
        if known.asks.observes == "prompt" or upto >= logical:
            return
        keys = view.keys
        queries, at = self._queries.last(req_id, layer.index, logical)
        if queries is None or at is None or int(at[0]) > upto:
            raise RuntimeError(f"queries of {req_id} were lost before they were counted")
        fresh = logical - upto
        self._count(known, layer, queries[-fresh:], keys, upto, keys.shape[1] - fresh)

    def _count(
        self, known: Gathered, layer: Layer, queries: Tensor, keys: Tensor, position: int, first: int
    ) -> None:  # fmt: skip
        """Add queries (W, Hq, D) of positions `position` ... and slots `first` ... to a layer's sums."""
        sums = known.layers.setdefault(layer.index, Sums())
        sums.upto = position + len(queries)
        if "mass" in known.names:
            every = known.asks.mass_every if position < known.prompt else 1
            skip = -position % every
            some = queries[skip::every]
            if len(some):
                _add_mass(sums, column_sums(some, keys, layer.softmax, first + skip, every) * every)
        for name, add in (("moments", _add_moments), ("bands", _add_bands)):
            if name in known.names and layer.rope is not None:
                skip = max(0, SINKS - position)
                if skip >= len(queries):
                    continue
                at = torch.arange(position + skip, position + len(queries), device=queries.device)
                add(sums, layer.rope.undo(queries[skip:], at), layer.rope)

    # -- a compaction --------------------------------------------------------------------------------

    def mass(self, req_id: str, layer: int, slots: int) -> Tensor | None:
        """(H, slots, G): what each slot got."""
        mass = self.requests[req_id].layers[layer].mass
        if mass is None:
            return None
        return _with_room(mass, slots)[:, :, :slots].transpose(1, 2)

    def compacted(self, req_id: str, layer: int, stay: Tensor) -> None:
        """The slots `stay` (H, keep) are what is left: the mass of the others is forgotten."""
        sums = self.requests[req_id].layers.get(layer)
        if sums is not None and sums.mass is not None:
            mass = _with_room(sums.mass, int(stay.max()) + 1)
            sums.mass = mass.gather(2, stay[:, None].expand(-1, mass.shape[1], -1))

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[str]:
        return iter(self.requests)


def _with_room(mass: Tensor, slots: int) -> Tensor:
    if mass.shape[2] >= slots:
        return mass
    grown = mass.new_zeros(*mass.shape[:2], slots + FOLD)
    grown[:, :, : mass.shape[2]] = mass
    return grown


def _add_mass(sums: Sums, fresh: Tensor) -> None:
    slots = fresh.shape[2]
    sums.mass = fresh if sums.mass is None else _with_room(sums.mass, slots)
    if sums.mass is not fresh:
        sums.mass[:, :, :slots] += fresh


def _add_moments(sums: Sums, queries: Tensor, rope: Rope) -> None:
    total, outer = queries.sum(0), torch.einsum("whd,whe->hde", queries, queries)
    before = sums.moments
    if before is not None:
        total, outer = before.total + total, before.outer + outer
    sums.moments = Moments(len(queries) + (before.count if before else 0), total, outer)


def _add_bands(sums: Sums, queries: Tensor, rope: Rope) -> None:
    bands = rope.bands(queries)
    total, moduli = bands.sum(0), bands.abs().sum(0)
    count = len(queries)
    if sums.bands is not None:
        count, total, moduli = count + sums.bands[0], total + sums.bands[1], moduli + sums.bands[2]
    sums.bands = (count, total, moduli)

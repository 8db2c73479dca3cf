"""Evidence that adds up over all queries of a request: attention mass, and moments of its queries before RoPE.

The queries of a prompt chunk are counted as attention runs, when they and the keys are at hand. A generated
token's query waits in its ring and is counted with up to FOLD others: at a compaction, or when the ring is
full. The cache only grows in between, so counting late gives what counting at once would have. With speculative
decoding it also waits until it is known whether the token stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from kvserve.cache.records import NO_DRAFTS, Drafts, Location, Record, Span
from kvserve.evidence.observer import Layer, Observer
from kvserve.evidence.queries import FOLD, QueryRings
from kvserve.evidence.sums import Sums
from kvserve.policy import LayerView


@dataclass
class Gathered:
    """What was gathered of one request."""

    names: tuple[str, ...]
    layers: dict[int, Sums] = field(default_factory=dict)
    error: Exception | None = None  # why nothing more is counted; raised when the evidence is looked at
    upto: int = 0  # all layers have counted the queries before this position, and perhaps more

    def waits(self, position: int, room: int) -> bool:
        """Whether queries before `position` are uncounted in some layer, `room` of them or more."""
        if self.layers and position - self.upto >= room:
            self.upto = min(sums.upto for sums in self.layers.values())
            return position - self.upto >= room
        return False


class Gatherer(Observer):
    """Counts the queries of the requests that ask for it."""

    def __init__(
        self, queries: QueryRings, layers: Mapping[int, Sequence[Layer]], drafts: Drafts = NO_DRAFTS
    ) -> None:  # fmt: skip
        self.extra: tuple[str, ...] = ()  # gathered of every request beside what its policy reads: calibration
        self._queries, self._layers = queries, layers
        self._late = 1 + drafts.tokens  # generated tokens of a step up to this number are counted later
        self._unseen = drafts.unseen
        self._prompts: list[Span] = []

    def begin(self, record: Record, first: int) -> None:
        if record.asks.gathers:
            record.observed[self] = Gathered(record.asks.gathers + self.extra)

    # -- a step --------------------------------------------------------------------------------------

    def begin_step(self, spans: Sequence[Span]) -> bool:
        for span in spans:
            if self.waiting(span):
                self._count_waiting(span)
        self._prompts = [span for span in spans if self.wants(span)]
        return bool(self._prompts)

    def wants(self, span: Span) -> bool:
        """Whether these tokens' queries are to be counted as attention runs."""
        return span.position < span.record.prompt or (span.count > self._late and span.record.asks.observes == "all")

    def waiting(self, span: Span) -> bool:
        """Whether the ring would lose a query that is not counted yet when these tokens' are stored or counted."""
        if span.record.asks.observes != "all" or span.position <= span.record.prompt:
            return False
        # More at once than may be drafted are counted as attention runs, in their order.
        room = FOLD + 1 - span.count if span.count <= self._late else 1
        known: Gathered = span.record.observed[self]
        return known.waits(span.position, room)

    def _count_waiting(self, span: Span) -> None:
        known = span.position - self._unseen
        try:
            for group, where in span.locate(known).items():
                for layer in self._layers[group]:
                    self.catch_up(span.record, layer, known, partial(_keys, layer, where))
        except Exception as error:  # said when the policy next looks at it
            span.record.observed[self].error = error

    def after(self, layer: Layer, query: Tensor, output: Tensor) -> None:
        """Count the prompt queries of a step; their keys are cached."""
        for span in self._prompts:
            known: Gathered = span.record.observed[self]
            if known.error is not None:
                continue
            try:
                self._count_prompt(span, layer, query)
            except Exception as error:  # this request's, and no other's
                known.error = error

    def _count_prompt(self, span: Span, layer: Layer, query: Tensor) -> None:
        count, where = span.count, span.after[layer.group]
        if span.record.asks.observes == "prompt":
            count = min(count, span.record.prompt - span.position)
        queries = query[span.row : span.row + count]
        self._count(span.record, layer, queries, _keys(layer, where), span.position, where.slots - span.count)

    def catch_up(self, record: Record, layer: Layer, logical: int, keys: Callable[[], Tensor]) -> None:
        """Count the generated tokens' queries that wait in the ring; `keys` gives those of all slots held."""
        upto = record.observed[self].layers[layer.index].upto
        if record.asks.observes == "prompt" or upto >= logical:
            return
        queries, at = self._queries.last(record, layer, logical)
        if queries is None or at is None or int(at[0]) > upto:
            raise RuntimeError(f"queries of {record.req_id} were lost before they were counted")
        fresh, held = logical - upto, keys()
        self._count(record, layer, queries[-fresh:], held, upto, held.shape[1] - fresh)

    def _count(
        self, record: Record, layer: Layer, queries: Tensor, keys: Tensor, position: int, first: int
    ) -> None:  # fmt: skip
        """Add queries (W, Hq, D) of positions `position` ... and slots `first` ... to a layer's sums."""
        known: Gathered = record.observed[self]
        sums = known.layers.setdefault(layer.index, Sums())
        every = record.asks.mass_every if position < record.prompt else 1
        sums.add(known.names, layer, queries, keys, position, first, every)

    # -- a compaction --------------------------------------------------------------------------------

    def show(self, view: LayerView, record: Record, layer: Layer, where: Location) -> None:
        """What was gathered, the queries of generated tokens up to now included."""
        known: Gathered = record.observed[self]
        if known.error is not None:
            raise known.error
        if record.asks.observes == "all":
            self.catch_up(record, layer, where.logical, lambda: view.keys)
        sums = known.layers[layer.index]
        view.mass, view.moments = sums.mass_of(where.slots), sums.moments

    def compacted(self, record: Record, layer: Layer, stay: Tensor) -> None:
        sums = record.observed[self].layers.get(layer.index)
        if sums is not None:
            sums.compacted(stay)


def _keys(layer: Layer, where: Location) -> Tensor:
    """(H, slots, D): those of all slots held, as they are stored, or in float32 where those are fp8 codes."""
    keys = layer.cache.keys
    contents = keys.read(where.blocks, where.slots)
    return contents if keys.fp8 is None else keys.decode(contents)

"""What may look at requests while the engine works on them: all evidence is gathered by observers."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from kvserve.cache.contents import LayerCache
from kvserve.cache.records import Location, Record, Span
from kvserve.policy import LayerView
from kvserve.policy.rope import Rope
from kvserve.policy.softmax import Softmax


@dataclass(frozen=True)
class Layer:
    """One compressible attention layer of this worker."""

    index: int  # among the compressible layers, in model order
    group: int
    cache: LayerCache
    num_kv_heads: int  # local
    softmax: Softmax
    rope: Rope | None = None
    calibration: dict[str, Tensor] | None = None
    output_weight: Callable[[], Tensor] | None = None  # see kvserve.evidence.output


class Upcoming(NamedTuple):
    """A compaction of one request that is about to be done."""

    record: Record
    logical: int  # tokens seen
    keep: Sequence[int]  # tokens that stay, for each group that loses some
    where: Mapping[int, Location]  # the cache before it, by group


class Observer:
    """Takes part in the life of the requests that it chooses; this one chooses none.

    It takes a request by leaving something at `record.observed[self]`, and is asked about no others.
    """

    late: ClassVar[bool] = False  # whether `before` may come when the step is over, for all layers, and `after` not

    def begin(self, record: Record, first: int) -> None:
        """A request starts, or starts again, with `first` tokens from the prefix cache: take it or not."""

    def end(self, record: Record) -> None:
        """A request that it took is over."""

    def begin_step(self, spans: Sequence[Span]) -> bool:
        """The coming step has these tokens of its requests, maybe none; whether it wants to see layers run."""
        return False

    def before(self, layer: Layer, query: Tensor) -> None:
        """The attention of a layer is about to run on the queries (tokens, Hq, D) of all requests, post-RoPE."""

    def after(self, layer: Layer, query: Tensor, output: Tensor) -> None:
        """It has run: the step's keys and values are cached. Rows of `output` (tokens, Hq, D) may be written anew."""

    def prepare(self, rounds: Sequence[Upcoming]) -> None:
        """Compactions of its requests are about to be done, before the coming step."""

    def hold(self, record: Record, logical: int) -> Any:
        """What it has noted of a request of which `logical` tokens were read, for others to start from."""
        return deepcopy(record.observed[self])

    def resume(self, record: Record, held: Any) -> None:
        """A request that it took starts from there."""
        record.observed[self] = deepcopy(held)

    def show(self, view: LayerView, record: Record, layer: Layer, where: Location) -> None:
        """Add what it knows of a request to what the policy sees of a layer."""

    def compacted(self, record: Record, layer: Layer, stay: Tensor) -> None:
        """The slots `stay` (H, keep) of a layer are what is left of a request's cache."""


Maker = Callable[[Any, Sequence[tuple[Layer, Any]], int], Observer | None]
"""From vLLM's model runner, the compressible layers with their attention modules, and this worker's first KV head."""

OF_MODELS: list[Maker] = []
"""What brings observers with a served model, or None if the model needs none: see kvserve.startup.plugin."""

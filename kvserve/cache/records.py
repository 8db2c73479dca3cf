"""What a worker remembers of the requests that have a compressing policy, and where their caches lie."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from kvserve.policy import Policy
from kvserve.policy.requirements import Asks


@dataclass
class LayerMemory:
    """What a layer remembers of a request between compactions."""

    positions: Tensor  # (H, kept) at the last one
    since: int
    state: dict[str, Tensor] = field(default_factory=dict)  # (H, kept, ...)
    memo: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """A request with a compressing policy, as this worker knows it."""

    req_id: str
    name: str  # of its policy
    policy: Policy = field(default_factory=Policy)
    asks: Asks = field(default_factory=Asks)
    prompt: int = 0  # tokens
    text: Sequence[int] | None = None  # the prompt's token ids; None if pictures or embeddings are in it
    seconds: float = 0.0  # that observers took to get ready for the coming compaction
    error: Exception | None = None  # what will be said of its policy when that is next asked what stays
    failed: bool = False  # its policy has, on this worker and all others: it is about to be ended
    offset: dict[int, int] = field(default_factory=dict)  # group -> logical - physical
    layers: dict[int, LayerMemory] = field(default_factory=dict)
    divided: bool = False  # whether the budget has been divided among the layers
    observed: dict[Any, Any] = field(default_factory=dict)  # what each observer that takes it has noted, by observer

    def restarted(self) -> "Record":
        """The same request, computed again from its first token."""
        return Record(self.req_id, self.name, self.policy, self.asks, self.prompt, self.text, failed=self.failed)


class Location(NamedTuple):
    """Where a layer group's cache of one request lies."""

    req_id: str
    group: int
    logical: int  # tokens seen
    slots: int  # tokens held
    blocks: Tensor  # block ids that hold them


Locate = Callable[[int], Mapping[int, Location]]
"""Where the first n tokens of one request lie, by group."""


class Drafts(NamedTuple):
    """What is not known of a step's tokens when they are computed, with speculative decoding."""

    tokens: int = 0  # of a request in a step at most that may be undone
    unseen: int = 0  # by how many a position may be too large, since a step is in flight: asynchronous scheduling
    positions: Tensor | None = None  # (tokens,) of the running step, true once its layers run; None without drafts


NO_DRAFTS = Drafts()


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one request in the batch of a step."""

    record: Record
    row: int  # index of the first one among the step's tokens
    position: int  # its logical position; too large by `Drafts.unseen` at most
    count: int
    locate: Locate

    @property
    def end(self) -> int:
        return self.position + self.count

    @cached_property
    def before(self) -> Mapping[int, Location]:
        """Its cache before the step, by group."""
        return self.locate(self.position)

    @cached_property
    def after(self) -> Mapping[int, Location]:
        """Its cache once these tokens are in it."""
        return self.locate(self.end)

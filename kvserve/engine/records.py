"""What a worker remembers of the requests that have a compressing policy."""

from dataclasses import dataclass, field
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
class Held:
    """A request with a compressing policy, as this worker knows it."""

    name: str  # of its policy
    policy: Policy = field(default_factory=Policy)
    asks: Asks = field(default_factory=Asks)
    prompt: int = 0  # tokens
    error: Exception | None = None  # what will be said of its policy when that is next asked what stays
    failed: bool = False  # its policy has, on this worker and all others: it is about to be ended
    offset: dict[int, int] = field(default_factory=dict)  # group -> logical - physical
    layers: dict[int, LayerMemory] = field(default_factory=dict)
    divided: bool = False  # whether the budget has been divided among the layers


class Cache(NamedTuple):
    """Where a layer group's cache of one request lies."""

    req_id: str
    group: int
    logical: int  # tokens seen
    slots: int  # tokens held
    blocks: Tensor  # block ids that hold them

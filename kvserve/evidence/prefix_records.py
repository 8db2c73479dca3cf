"""What a worker remembers of compressed prefixes, beside their blocks: enough to go on from one as its maker would."""

from collections.abc import Iterable
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

from kvserve.cache.records import LayerMemory, Record
from kvserve.evidence.observer import Observer


@dataclass
class PrefixRecord:
    """A request's record as it was when its prefix had been compressed; nothing in it is shared with a request."""

    offset: dict[int, int]
    layers: dict[int, LayerMemory]
    divided: bool
    observed: dict[Observer, Any]


class PrefixRecords:
    """Those of one worker, by prefix."""

    def __init__(self) -> None:
        self._held: dict[str, PrefixRecord] = {}

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, prefix_id: str, record: Record, logical: int) -> None:
        """A request has been compacted at `logical` tokens, and others may start from there."""
        self._held[prefix_id] = PrefixRecord(
            dict(record.offset),
            _apart(record.layers),
            record.divided,
            {observer: observer.hold(record, logical) for observer in record.observed},
        )

    def start(self, prefix_id: str, record: Record) -> None:
        """A new request, which observers have taken, goes on from there. Raises KeyError if it was not kept."""
        held = self._held[prefix_id]
        record.offset, record.layers, record.divided = dict(held.offset), _apart(held.layers), held.divided
        for observer in record.observed:
            observer.resume(record, held.observed[observer])

    def drop(self, prefix_ids: Iterable[str]) -> None:
        for prefix_id in prefix_ids:
            self._held.pop(prefix_id, None)


def _apart(layers: dict[int, LayerMemory]) -> dict[int, LayerMemory]:
    """Tensors are never written once they are in a record; what a policy notes may be."""
    return {
        index: LayerMemory(each.positions, each.since, copy(each.state), deepcopy(each.memo))
        for index, each in layers.items()
    }

"""Building what a policy sees: the cache of one layer, and the evidence gathered about it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvserve.cache.contents import Tokens
from kvserve.cache.records import LayerMemory, Location, Record
from kvserve.evidence.observer import Layer
from kvserve.policy import Calibrated, LayerView, OutputWeight, Rotation
from kvserve.policy.evidence import find


class Views:
    """Makes the `LayerView`s of this worker."""

    def __init__(
        self, num_layers: int, head_offset: int, device: torch.device, mean: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        self._num_layers, self._head_offset, self._device = num_layers, head_offset, device
        self._mean = mean  # over the workers

    def of(self, where: Location, record: Record, layer: Layer, read: dict[str, Tensor]) -> LayerView:
        """The view of one layer; contents that the policy asks for are left in `read`, as they are stored."""

        def load(which: str) -> Tensor:
            tokens: Tokens = getattr(layer.cache, which)
            read[which] = tokens.read(where.blocks, where.slots)
            return tokens.decode(read[which])

        memory, declared = record.layers.get(layer.index), record.asks.evidence
        view = LayerView(
            layer=layer.index,
            num_layers=self._num_layers,
            logical=where.logical,
            since=memory.since if memory else 0,
            positions=self._positions(where, record, layer, memory),
            load=load,
            softmax=layer.softmax,
            head_offset=self._head_offset,
            state=_padded(memory.state, where.slots) if memory else {},
            memo=memory.memo if memory else {},
            prompt=record.prompt,
            evidence=declared,
            rope=layer.rope if find(Rotation, declared) else None,
            calibration=layer.calibration if find(Calibrated, declared) else None,
            output_weight=layer.output_weight if find(OutputWeight, declared) else None,
            mean_over_workers=self._mean,
        )
        for observer in record.observed:
            observer.show(view, record, layer, where)
        return view

    def _positions(self, where: Location, record: Record, layer: Layer, memory: LayerMemory | None) -> Tensor:
        """Logical positions of the slots: remembered ones, then the tokens that came since."""
        kept = memory.positions.shape[1] if memory else 0
        offset = record.offset.get(where.group, 0)
        fresh = torch.arange(kept, where.slots, device=self._device) + offset
        fresh = fresh.expand(layer.num_kv_heads, -1)
        return torch.cat([memory.positions, fresh], dim=1) if memory else fresh


class LazyViews(Sequence[LayerView]):
    """Views that are made when they are first looked at, so that layers can be dealt with one by one."""

    def __init__(self, makers: Sequence[Callable[[], LayerView]]) -> None:
        self._makers = makers
        self._made: dict[int, LayerView] = {}

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index not in self._made:
            self._made[index] = self._makers[index]()
        return self._made[index]


def _padded(state: dict[str, Tensor], slots: int) -> dict[str, Tensor]:
    """Per-slot state with zeros for the tokens that came since."""
    return {
        name: torch.cat([old, old.new_zeros(old.shape[0], slots - old.shape[1], *old.shape[2:])], dim=1)
        for name, old in state.items()
    }

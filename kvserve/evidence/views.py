"""Building what a policy sees: the cache of one layer, and the evidence gathered about it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvserve.engine.records import Cache, Held, LayerMemory
from kvserve.engine.slots import Tokens
from kvserve.evidence.gather import Gatherer, Layer
from kvserve.evidence.queries import QueryRings
from kvserve.policy import LayerView
from kvserve.summary.maker import SummaryMaker


class Views:
    """Makes the `LayerView`s of this worker."""

    def __init__(
        self,
        queries: QueryRings,
        gather: Gatherer,
        num_layers: int,
        head_offset: int,
        device: torch.device,
        summaries: SummaryMaker | None = None,
        mean: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self._queries, self._gather = queries, gather
        self._mean = mean  # over the workers
        self._summaries = summaries
        self._num_layers, self._head_offset, self._device = num_layers, head_offset, device

    def of(self, cache: Cache, held: Held, layer: Layer, read: dict[str, Tensor]) -> LayerView:
        """The view of one layer; contents that the policy asks for are left in `read`, as they are stored."""

        def load(which: str) -> Tensor:
            tokens: Tokens = getattr(layer.slots, which)
            read[which] = tokens.read(cache.blocks, cache.slots)
            return tokens.decode(read[which])

        memory = held.layers.get(layer.index)
        queries, at = self._queries.last(cache.req_id, layer.index, cache.logical)
        view = LayerView(
            layer=layer.index,
            num_layers=self._num_layers,
            logical=cache.logical,
            since=memory.since if memory else 0,
            positions=self._positions(cache, held, layer, memory),
            load=load,
            softmax=layer.softmax,
            head_offset=self._head_offset,
            queries=queries,
            query_positions=at,
            state=_padded(memory.state, cache.slots) if memory else {},
            memo=memory.memo if memory else {},
            prompt=held.prompt,
            rope=layer.rope,
            calibration=layer.calibration,
            mean_over_workers=self._mean,
            summaries=partial(self._summaries.of, cache.req_id, layer) if self._summaries is not None else None,
        )
        self._with_evidence(view, cache, held, layer)
        return view

    def _with_evidence(self, view: LayerView, cache: Cache, held: Held, layer: Layer) -> None:
        """Add what was gathered, the queries of generated tokens up to now included."""
        if cache.req_id not in self._gather.requests:
            return
        if (error := self._gather.requests[cache.req_id].error) is not None:
            raise error
        if held.asks.observes == "all":
            self._gather.catch_up(cache.req_id, layer, cache.logical, view)
        view.mass = self._gather.mass(cache.req_id, layer.index, cache.slots)
        view.moments = self._gather.requests[cache.req_id].layers[layer.index].moments

    def _positions(self, cache: Cache, held: Held, layer: Layer, memory: LayerMemory | None) -> Tensor:
        """Logical positions of the slots: remembered ones, then the tokens that came since."""
        kept = memory.positions.shape[1] if memory else 0
        offset = held.offset.get(cache.group, 0)
        fresh = torch.arange(kept, cache.slots, device=self._device) + offset
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

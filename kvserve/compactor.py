"""The worker's half of a compaction: which tokens stay, and moving them to their new slots."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kvserve.feedback import Feedback
from kvserve.plan import Plan
from kvserve.policy import Policy
from kvserve.queries import QueryRings
from kvserve.slots import Slots, Tokens, take
from kvserve.view import LayerView


@dataclass(frozen=True)
class Layer:
    """One compressible attention layer of this worker."""

    index: int  # among the compressible layers, in model order
    group: int
    slots: Slots
    num_kv_heads: int  # local
    scale: float


@dataclass
class LayerMemory:
    """What a layer remembers of a request between compactions."""

    positions: Tensor  # (H, kept) at the last one
    since: int
    state: dict[str, Tensor] = field(default_factory=dict)  # (H, kept, ...)


@dataclass
class Held:
    """A request with a compressing policy, as this worker knows it."""

    policy: Policy
    offset: dict[int, int] = field(default_factory=dict)  # group -> logical - physical
    layers: dict[int, LayerMemory] = field(default_factory=dict)


class Selection(NamedTuple):
    """A record of one selection, kept only when tracing."""

    req_id: str
    layer: int
    logical: int
    positions: Tensor  # (H, keep): logical positions of the tokens that stay


class Compactor:
    """Runs plans on this worker's layers."""

    def __init__(
        self,
        layers: Mapping[int, list[Layer]],
        queries: QueryRings,
        head_offset: int,
        device: torch.device,
        trace: bool = False,
    ) -> None:
        self.layers = layers  # by group
        self.queries = queries
        self.requests: dict[str, Held] = {}
        self.feedback = Feedback()
        self.selections: list[Selection] | None = [] if trace else None
        self._num_layers = sum(len(group) for group in layers.values())
        self._head_offset = head_offset
        self._device = device

    # -- a request -----------------------------------------------------------------------------------

    def begin(self, req_id: str, policy: Policy, first: int) -> None:
        """A request starts, or starts again after a preemption, with `first` tokens from the prefix cache."""
        self.requests[req_id] = Held(policy)
        if policy.query_window:
            self.queries.seat(req_id, policy.query_window, first)

    def end(self, req_id: str) -> None:
        self.requests.pop(req_id, None)
        self.queries.leave(req_id)

    # -- a plan --------------------------------------------------------------------------------------

    def run(self, plan: Plan) -> None:
        """Execute one plan in every layer of its group; raises KeyError for an unknown request."""
        started = time.perf_counter()
        held = self.requests[plan.req_id]
        src = torch.tensor(plan.src, device=self._device)
        dst = torch.tensor(plan.dst, device=self._device)
        for layer in self.layers[plan.group]:
            self._compact(plan, held, layer, src, dst)
        held.offset[plan.group] = plan.logical - plan.keep
        self.feedback.add(held.policy.name, time.perf_counter() - started)

    def _compact(self, plan: Plan, held: Held, layer: Layer, src: Tensor, dst: Tensor) -> None:
        read: dict[str, Tensor] = {}
        view = self._view(plan, held, layer, src, read)
        stay = held.policy.select(view, plan.keep)
        # All is picked before any is written: source and destination blocks overlap.
        parts = layer.slots._asdict()
        picked = {n: take(read[n], stay) if n in read else tokens.pick(src, stay) for n, tokens in parts.items()}
        for name, tokens in parts.items():
            tokens.write(dst, picked[name])
        held.layers[layer.index] = LayerMemory(
            positions=view.positions.gather(1, stay),
            since=plan.logical,
            state={name: take(values, stay) for name, values in view.state.items()},
        )
        if self.selections is not None:
            kept = held.layers[layer.index].positions.cpu()
            self.selections.append(Selection(plan.req_id, layer.index, plan.logical, kept))

    def _view(self, plan: Plan, held: Held, layer: Layer, src: Tensor, read: dict[str, Tensor]) -> LayerView:
        """What the policy sees; contents that it asks for are left in `read`."""

        def load(which: str) -> Tensor:
            tokens: Tokens = getattr(layer.slots, which)
            read[which] = tokens.read(src, plan.held)
            return tokens.decode(read[which])

        memory = held.layers.get(layer.index)
        queries, at = self.queries.last(plan.req_id, layer.index, plan.logical)
        return LayerView(
            layer=layer.index,
            num_layers=self._num_layers,
            logical=plan.logical,
            since=memory.since if memory else 0,
            positions=self._positions(plan, held, layer, memory),
            load=load,
            scale=layer.scale,
            head_offset=self._head_offset,
            queries=queries,
            query_positions=at,
            state=_padded(memory.state, plan.held) if memory else {},
        )

    def _positions(self, plan: Plan, held: Held, layer: Layer, memory: LayerMemory | None) -> Tensor:
        """Logical positions of the slots: remembered ones, then the tokens that came since."""
        kept = memory.positions.shape[1] if memory else 0
        offset = held.offset.get(plan.group, 0)
        fresh = torch.arange(kept, plan.held, device=self._device) + offset
        fresh = fresh.expand(layer.num_kv_heads, -1)
        return torch.cat([memory.positions, fresh], dim=1) if memory else fresh

    def take_feedback(self) -> Feedback | None:
        """What was measured since the last call, None if nothing."""
        if not self.feedback.seconds:
            return None
        taken, self.feedback = self.feedback, Feedback()
        return taken


def _padded(state: dict[str, Tensor], slots: int) -> dict[str, Tensor]:
    """Per-slot state with zeros for the tokens that came since."""
    return {
        name: torch.cat([old, old.new_zeros(old.shape[0], slots - old.shape[1], *old.shape[2:])], dim=1)
        for name, old in state.items()
    }

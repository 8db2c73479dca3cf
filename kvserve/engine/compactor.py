"""The worker's half of a compaction: which tokens stay, and moving them to their new slots."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kvserve.cache.contents import take
from kvserve.cache.moving import move
from kvserve.cache.records import NO_DRAFTS, Drafts, LayerMemory, Locate, Location, Record, Span
from kvserve.channels import Feedback, Plan
from kvserve.evidence.agreement import Agreement, Apart
from kvserve.evidence.gather import Gatherer
from kvserve.evidence.observer import Layer, Observer, Upcoming
from kvserve.evidence.prefix_records import PrefixRecords
from kvserve.evidence.probe import Probe
from kvserve.evidence.queries import QueryRings
from kvserve.evidence.views import LazyViews, Views
from kvserve.policy import LayerView, Merged, Policy
from kvserve.policy.errors import PolicyFault
from kvserve.policy.requirements import Asks
from kvserve.policy.selection import Room, checked, shared

logger = logging.getLogger(__name__)


class Selection(NamedTuple):
    """A record of one selection, kept only when tracing."""

    req_id: str
    layer: int
    logical: int
    positions: Tensor  # (H, keep): logical positions of the tokens that stay


class _Step(NamedTuple):
    """One layer of a compaction."""

    plan: Plan
    layer: Layer
    src: Tensor
    dst: Tensor
    apart: bool  # no block is in both
    read: dict[str, Tensor]  # contents that the policy has read, as they are stored


class Compactor:
    """Runs plans on this worker's layers, and lets observers see its requests."""

    def __init__(
        self,
        layers: Mapping[int, list[Layer]],
        num_layers: int,
        head_offset: int,
        device: torch.device,
        trace: bool = False,
        more: Sequence[Observer] = (),
        drafts: Drafts = NO_DRAFTS,
    ) -> None:
        self.layers = layers  # by group
        self.queries = QueryRings(device, drafts)
        self.gather = Gatherer(self.queries, layers, drafts)
        self.observers: list[Observer] = [self.queries, self.gather, *more]
        self.active: list[Observer] = []  # those that see the layers of the running step
        self._resting = False  # whether observers know that the running step has nothing for them
        self.requests: dict[str, Record] = {}
        self.held = PrefixRecords()  # of shared compressed prefixes
        self.changed = True  # whether requests have come, gone or shrunk since the runner last looked
        self._idle: bool | None = None  # None: to be found out
        self.feedback = Feedback()
        self.probe: Probe | None = None
        self.selections: list[Selection] | None = [] if trace else None
        self._agreement = Agreement()
        self._num_layers = num_layers  # of the whole model: other pipeline stages have layers too
        self._views = Views(self._num_layers, head_offset, device, self._agreement.mean)
        self._device = device

    # -- a request -----------------------------------------------------------------------------------

    def begin(
        self,
        req_id: str,
        name: str,
        make: Callable[[], tuple[Policy, int]],
        first: int,
        text: Sequence[int] | None = None,
    ) -> None:
        """A request with a policy comes in, with `first` tokens from the prefix cache.

        make: gives the policy called `name`, and how many tokens its prompt has. text: the prompt's token ids, if
        they say all of it.
        """
        record = self.requests[req_id] = Record(req_id, name, text=text)
        self.changed = True

        def started() -> None:
            record.policy, record.prompt = make()
            record.asks = Asks.of(record.policy)
            self._observe(record, first)

        self._ask(record, "it was being started", started)
        if not record.failed and not record.policy.compresses:
            self.end(req_id)

    def restart(self, req_id: str, first: int) -> None:
        """The same after a preemption."""
        self._forget(self.requests[req_id])
        self.changed = True
        record = self.requests[req_id] = self.requests[req_id].restarted()
        if not record.failed:
            self._observe(record, first)

    def keep(self, prefix_id: str, req_id: str, logical: int) -> None:
        """What a request has just been compacted to is a prefix that others may start from."""
        if not self.requests[req_id].failed:
            self.held.keep(prefix_id, self.requests[req_id], logical)

    def start_from(self, prefix_id: str, req_id: str) -> None:
        """A request that has just begun starts from a compressed prefix."""
        if (record := self.requests.get(req_id)) is not None and not record.failed:
            self._idle = None
            self._ask(record, "it was starting from a shared prefix", partial(self.held.start, prefix_id, record))

    def _observe(self, record: Record, first: int) -> None:
        self._idle = None
        for observer in self.observers:
            observer.begin(record, first)

    def _ask(self, record: Record, doing: str, work: Callable[[], None]) -> None:
        """What involves the policy of one request. If it goes wrong, here or on another worker, that request fails."""
        error = self._agreement.reached(work)
        if error is None:
            return
        record.failed = True
        self._forget(record)
        fault = PolicyFault(record.name, doing, str(error) if isinstance(error, Apart) else error)
        logger.error("%s", fault, exc_info=error)
        self.feedback.errors[record.req_id] = str(fault)

    def end(self, req_id: str) -> None:
        if (record := self.requests.pop(req_id, None)) is not None:
            self.changed = True
            self._forget(record)

    def _forget(self, record: Record) -> None:
        self._idle = None
        for observer in record.observed:
            observer.end(record)
        record.observed.clear()

    # -- a step --------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nobody needs to know which tokens of its requests a step has."""
        if self._idle is None:
            self._idle = not any(
                record.observed or (record.asks.own_shares and not record.divided) for record in self.requests.values()
            )
        return self._idle

    def begin_step(self, spans: Sequence[Span]) -> None:
        """The coming step has these tokens of its requests."""
        if self._resting and not spans:
            return
        self._resting = not spans
        self.active = [o for o in self.observers if o.begin_step([s for s in spans if o in s.record.observed])]

    @property
    def watched(self) -> bool:
        """Whether the layers of the running step must be seen as they run: not those of a replayed CUDA graph."""
        return any(not observer.late for observer in self.active)

    def undivided(self, span: Span) -> bool:
        """Whether a request's prompt is complete with these tokens and `divide` is to be called."""
        record = span.record
        return span.end >= record.prompt and not record.divided and (record.asks.own_shares or self.probe is not None)

    def divide(self, span: Span) -> None:
        """The prompt of a request is complete: work out what share of the budget each layer gets."""
        span.record.divided, self._idle = True, None
        self._ask(span.record, "it was dividing the budget among the layers", partial(self._divide, span))

    def _divide(self, span: Span) -> None:
        record = span.record
        views = [
            self._views.of(where, record, layer, {})
            for where in span.after.values()
            for layer in self.layers[where.group]
        ]
        if self.probe is not None:
            self.probe.sample(views, record.observed[self.gather])
        if record.asks.own_shares:
            keep = min(record.policy.target(span.end, record.prompt), span.end)
            shares = shared(record.policy.own_shares_of(views, keep), len(views), keep)
            self.feedback.weights[record.req_id] = [share / keep for share in shares]

    # -- plans ---------------------------------------------------------------------------------------

    def prepare(self, plans: Iterable[tuple[list[Plan], Locate]]) -> None:
        """Let observers get ready for the plans of the coming step, by request: those of all requests at once."""
        rounds = []
        for of_one, locate in plans:
            record = self.requests[of_one[0].req_id]
            if record.observed:
                logical = of_one[0].logical
                rounds.append(Upcoming(record, logical, [plan.keep for plan in of_one], locate(logical)))
        for observer in self.observers:
            if ours := [each for each in rounds if observer in each.record.observed]:
                started = time.perf_counter()
                observer.prepare(ours)
                for each in ours:
                    each.record.seconds += (time.perf_counter() - started) / len(ours)

    def run(self, plans: Sequence[Plan]) -> None:
        """Execute all plans of one request for the coming step; raises KeyError for an unknown request."""
        record = self.requests[plans[0].req_id]
        if not record.failed:
            self._ask(record, "it was choosing what stays", partial(self._compact, record, plans))
        # Also if it failed: the blocks are the new ones, which no other request can read.
        self.changed = True
        for plan in plans:
            record.offset[plan.group] = plan.logical - plan.keep

    def _compact(self, record: Record, plans: Sequence[Plan]) -> None:
        if record.error is not None:
            raise record.error
        started = time.perf_counter()
        steps = [step for plan in plans for step in self._steps(plan)]
        views = LazyViews([partial(self._view, step, record) for step in steps])
        choices = record.policy.choose(views, [step.plan.keep for step in steps])
        merged = 0
        for i, (step, choice) in enumerate(zip(steps, choices, strict=True)):
            merged += self._apply(step, record, views[i], choice)
        if merged and not plans[0].again:
            self.feedback.merged[record.req_id] = merged / self._num_layers
        self.feedback.add(record.policy.name, time.perf_counter() - started + record.seconds)
        record.seconds = 0.0

    def _steps(self, plan: Plan) -> list[_Step]:
        src = torch.tensor(plan.src, device=self._device)
        dst = torch.tensor(plan.dst, device=self._device)
        apart = set(plan.src).isdisjoint(plan.dst)
        return [_Step(plan, layer, src, dst, apart, {}) for layer in self.layers[plan.group]]

    def _view(self, step: _Step, record: Record) -> LayerView:
        plan = step.plan
        where = Location(plan.req_id, plan.group, plan.logical, plan.held, step.src)
        return self._views.of(where, record, step.layer, step.read)

    def _apply(self, step: _Step, record: Record, view: LayerView, choice: Tensor | Merged) -> int:
        """Move what stays to its new slots and remember it; the number of tokens that were merged."""
        choice = checked(choice, self._room(step))
        move(step.layer.cache, step.src, step.dst, choice, step.read, step.apart)
        stay = choice.slots
        record.layers[step.layer.index] = LayerMemory(
            positions=view.positions.gather(1, stay),
            since=step.plan.logical,
            state={name: take(values, stay) for name, values in view.state.items()},
            memo=view.memo,
        )
        for observer in record.observed:
            observer.compacted(record, step.layer, stay)
        view.forget()
        if self.selections is not None:
            kept = record.layers[step.layer.index].positions.cpu()
            self.selections.append(Selection(record.req_id, step.layer.index, step.plan.logical, kept))
        return choice.merged

    def _room(self, step: _Step) -> Room:
        """What the choice for one layer has to fit."""
        sizes = [tokens.head_size for tokens in step.layer.cache]
        return Room(step.layer.num_kv_heads, step.plan.held, step.plan.keep, *sizes)

    def take_feedback(self) -> Feedback | None:
        """What was measured and found since the last call, None if nothing."""
        if not self.feedback:
            return None
        taken, self.feedback = self.feedback, Feedback()
        return taken

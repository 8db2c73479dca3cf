"""The worker's half of a compaction: which tokens stay, and moving them to their new slots."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from kvserve.engine.feedback import Feedback
from kvserve.engine.plan import Plan
from kvserve.engine.records import Cache, Held, LayerMemory
from kvserve.engine.slots import take
from kvserve.evidence.gather import FOLD, Gatherer, Layer
from kvserve.evidence.probe import Probe
from kvserve.evidence.queries import QueryRings
from kvserve.evidence.views import LazyViews, Views
from kvserve.policy import LayerView, Merged, Policy
from kvserve.policy.errors import PolicyFault
from kvserve.policy.requirements import Asks
from kvserve.policy.selection import Room, checked, shared
from kvserve.startup.agreement import Agreement, Apart
from kvserve.summary.maker import SummaryMaker

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
    read: dict[str, Tensor]  # contents that the policy has read, as they are stored


class Compactor:
    """Runs plans on this worker's layers."""

    def __init__(
        self,
        layers: Mapping[int, list[Layer]],
        queries: QueryRings,
        head_offset: int,
        device: torch.device,
        trace: bool = False,
        summaries: SummaryMaker | None = None,
    ) -> None:
        self.layers = layers  # by group
        self.queries = queries
        self.gather = Gatherer(queries)
        self.summaries = summaries
        self.requests: dict[str, Held] = {}
        self.feedback = Feedback()
        self.probe: Probe | None = None
        self.selections: list[Selection] | None = [] if trace else None
        self._agreement = Agreement()
        self._num_layers = sum(len(group) for group in layers.values())
        self._views = Views(
            queries, self.gather, self._num_layers, head_offset, device, summaries, self._agreement.mean
        )
        self._device = device

    # -- a request -----------------------------------------------------------------------------------

    def begin(self, req_id: str, name: str, make: Callable[[], tuple[Policy, int]], first: int) -> None:
        """A request with a policy comes in, with `first` tokens from the prefix cache.

        make: gives the policy called `name`, and how many tokens its prompt has.
        """
        held = self.requests[req_id] = Held(name)

        def started() -> None:
            held.policy, held.prompt = make()
            held.asks = Asks.of(held.policy)
            self._observe(req_id, first)

        self._ask(req_id, "it was being started", started)
        if not held.failed and not held.policy.compresses:
            self.end(req_id)

    def restart(self, req_id: str, first: int) -> None:
        """The same after a preemption."""
        before = self.requests[req_id]
        held = self.requests[req_id] = Held(
            before.name, before.policy, before.asks, before.prompt, failed=before.failed
        )
        if not held.failed:
            self._observe(req_id, first)

    def _observe(self, req_id: str, first: int) -> None:
        """From now on gather what the request's policy reads."""
        held = self.requests[req_id]
        asks = held.asks
        self.gather.begin(req_id, asks, held.prompt)
        if self.summaries is not None and asks.summaries:
            self.summaries.begin(req_id, asks.text_window, asks.summarised)
        window = max(asks.query_window, FOLD if asks.gathers and asks.observes == "all" else 0)
        if window:
            self.queries.seat(req_id, window, first)

    def _ask(self, req_id: str, doing: str, work: Callable[[], None]) -> None:
        """What involves the policy of one request. If it goes wrong, here or on another worker, that request fails."""
        error = self._agreement.reached(work)
        if error is None:
            return
        held = self.requests[req_id]
        held.failed = True
        self._forget(req_id)
        fault = PolicyFault(held.name, doing, str(error) if isinstance(error, Apart) else error)
        logger.error("%s", fault, exc_info=error)
        self.feedback.errors[req_id] = str(fault)

    def end(self, req_id: str) -> None:
        self.requests.pop(req_id, None)
        self._forget(req_id)

    def _forget(self, req_id: str) -> None:
        self.gather.end(req_id)
        self.queries.leave(req_id)
        if self.summaries is not None:
            self.summaries.end(req_id)

    def undivided(self, req_id: str, logical: int) -> bool:
        """Whether this request's prompt is complete with `logical` tokens and `divide` is to be called."""
        held = self.requests[req_id]
        return logical >= held.prompt and not held.divided and (held.asks.own_shares or self.probe is not None)

    def divide(self, caches: Sequence[Cache]) -> None:
        """The prompt of a request is complete: work out what share of the budget each layer gets."""
        req_id = caches[0].req_id
        self.requests[req_id].divided = True
        self._ask(req_id, "it was dividing the budget among the layers", partial(self._divide, caches))

    def _divide(self, caches: Sequence[Cache]) -> None:
        req_id, logical = caches[0].req_id, caches[0].logical
        held = self.requests[req_id]
        views = [self._views.of(cache, held, layer, {}) for cache in caches for layer in self.layers[cache.group]]
        if self.probe is not None:
            self.probe.sample(views, self.gather.requests[req_id])
        if held.asks.own_shares:
            keep = min(held.policy.target(logical, held.prompt), logical)
            shares = shared(held.policy.own_shares_of(views, keep), len(views), keep)
            self.feedback.weights[req_id] = [share / keep for share in shares]

    def count_waiting(self, caches: Sequence[Cache]) -> None:
        """Count the queries that wait in a request's rings before they are overwritten: looking at a layer does."""
        req_id = caches[0].req_id
        try:
            for cache in caches:
                for layer in self.layers[cache.group]:
                    self._views.of(cache, self.requests[req_id], layer, {})
        except Exception as error:  # said when the policy next looks at it
            self.gather.requests[req_id].error = error

    # -- plans ---------------------------------------------------------------------------------------

    def prepare(self, plans: Sequence[Plan], caches: Callable[[str, int], Iterator[Cache]]) -> None:
        """Make the summaries that these plans of the coming step ask for, those of all requests in one pass."""
        if self.summaries is None:
            return
        due = {}
        for plan in plans:
            if plan.req_id in self.summaries:
                try:
                    found = {cache.group: cache for cache in caches(plan.req_id, plan.logical)}
                    due[plan.req_id] = self.summaries.due(plan, found)
                except ValueError as error:
                    self.requests[plan.req_id].error = error
        if due:
            self.summaries.complete([each for req_id, each in due.items() if self.requests[req_id].error is None])

    def run(self, plans: Sequence[Plan]) -> None:
        """Execute all plans of one request for the coming step; raises KeyError for an unknown request."""
        req_id = plans[0].req_id
        held = self.requests[req_id]
        if not held.failed:
            self._ask(req_id, "it was choosing what stays", partial(self._compact, held, plans))
        # Also if it failed: the blocks are the new ones, which no other request can read.
        for plan in plans:
            held.offset[plan.group] = plan.logical - plan.keep

    def _compact(self, held: Held, plans: Sequence[Plan]) -> None:
        if held.error is not None:
            raise held.error
        started = time.perf_counter()
        steps = [step for plan in plans for step in self._steps(plan)]
        views = LazyViews([partial(self._view, step, held) for step in steps])
        choices = held.policy.choose(views, [step.plan.keep for step in steps])
        merged = 0
        for i, (step, choice) in enumerate(zip(steps, choices, strict=True)):
            merged += self._apply(step, held, views[i], choice)
        if merged and not plans[0].again:
            self.feedback.merged[plans[0].req_id] = merged / self._num_layers
        self.feedback.add(held.policy.name, time.perf_counter() - started)

    def _steps(self, plan: Plan) -> list[_Step]:
        src = torch.tensor(plan.src, device=self._device)
        dst = torch.tensor(plan.dst, device=self._device)
        return [_Step(plan, layer, src, dst, {}) for layer in self.layers[plan.group]]

    def _view(self, step: _Step, held: Held) -> LayerView:
        plan = step.plan
        cache = Cache(plan.req_id, plan.group, plan.logical, plan.held, step.src)
        return self._views.of(cache, held, step.layer, step.read)

    def _apply(self, step: _Step, held: Held, view: LayerView, choice: Tensor | Merged) -> int:
        """Move what stays to its new slots and remember it; the number of tokens that were merged."""
        choice = checked(choice, self._room(step))
        self._move(step, choice)
        stay = choice.slots
        held.layers[step.layer.index] = LayerMemory(
            positions=view.positions.gather(1, stay),
            since=step.plan.logical,
            state={name: take(values, stay) for name, values in view.state.items()},
            memo=view.memo,
        )
        if step.plan.req_id in self.gather.requests:
            self.gather.compacted(step.plan.req_id, step.layer.index, stay)
        view.forget()
        if self.selections is not None:
            kept = held.layers[step.layer.index].positions.cpu()
            self.selections.append(Selection(step.plan.req_id, step.layer.index, step.plan.logical, kept))
        return choice.merged

    def _room(self, step: _Step) -> Room:
        """What the choice for one layer has to fit."""
        none = torch.empty(step.layer.num_kv_heads, 0, dtype=torch.long, device=self._device)
        sizes = [
            (step.read[name] if name in step.read else tokens.pick(step.src, none)).shape[-1]
            for name, tokens in step.layer.slots._asdict().items()
        ]
        return Room(step.layer.num_kv_heads, step.plan.held, step.plan.keep, *sizes)

    def _move(self, step: _Step, choice: Merged) -> None:
        skip = self._undisturbed(step, choice)
        slots = choice.slots[:, skip * step.layer.slots.keys.block_size :]
        # All is picked before any is written: source and destination blocks overlap.
        picked = {}
        for name, tokens in step.layer.slots._asdict().items():
            made = getattr(choice, name)
            if made is not None and choice.first is None:
                picked[name] = tokens.encode(made)
                continue
            picked[name] = take(step.read[name], slots) if name in step.read else tokens.pick(step.src, slots)
            if made is not None:
                picked[name].narrow(1, choice.first - skip * tokens.block_size, made.shape[1]).copy_(
                    tokens.encode(made)
                )
        for name, tokens in step.layer.slots._asdict().items():
            tokens.write(step.dst[skip:], picked[name])
        step.read.clear()

    def _undisturbed(self, step: _Step, choice: Merged) -> int:
        """Blocks at the beginning that stay where and as they are."""
        if choice.first is None:
            return 0
        same = takewhile(lambda pair: pair[0] == pair[1], zip(step.plan.src, step.plan.dst, strict=False))
        return min(choice.first // step.layer.slots.keys.block_size, len(list(same)))

    def take_feedback(self) -> Feedback | None:
        """What was measured and found since the last call, None if nothing."""
        if not self.feedback:
            return None
        taken, self.feedback = self.feedback, Feedback()
        return taken

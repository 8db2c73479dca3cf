"""vLLM's scheduler, which also decides when, and to how many tokens, a request's cache shrinks."""

import time
from functools import partial
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from kvserve.channels import Asked, Plan, PrefixNews, add_totals, feedback_of, with_plans, with_prefixes, with_record
from kvserve.engine.accounts import Accounts
from kvserve.engine.blocks import publish_if
from kvserve.engine.connector import Hidden, hide
from kvserve.engine.faults import Faults
from kvserve.engine.planner import PLANNING, Compaction, Planner, waits
from kvserve.engine.prefixes import Prefix, Prefixes, unchained
from kvserve.engine.spare import pass_by
from kvserve.engine.tracked import Tracked, tracked_of
from kvserve.policy import request as wire
from kvserve.startup.guard import refuse_unsupported
from kvserve.startup.options import KVOptions
from kvserve.startup.vllm_0_33 import Hit, hit_within


class _Compressing:
    """Mixed in front of vLLM's scheduler classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_unsupported(self.vllm_config)  # type: ignore[attr-defined]
        self.kv_requests: dict[str, Tracked] = {}
        self.kv_reported: set[str] = set()  # of these, those with stop strings: see `_kv_report_early`
        self.kv = Accounts(self)
        publish_if(self.kv_cache_manager.coordinator, self._kv_exact)  # type: ignore[attr-defined]
        pass_by(self.kv_cache_manager)  # type: ignore[attr-defined]
        self.kv_hidden: Hidden | None = None
        if self.connector is not None:  # type: ignore[attr-defined]
            hide(self.connector, hidden := Hidden())  # type: ignore[attr-defined]
            self.kv_hidden = hidden
        if (default := KVOptions.of(self.vllm_config).policy) is not None:  # type: ignore[attr-defined]
            wire.settled(default, self.kv.facts)  # better no server than one that refuses every request
        self.kv_faults = Faults()
        self.kv_prefixes = Prefixes(self.kv_cache_manager.block_pool, self.kv.managers)  # type: ignore[attr-defined]
        self.kv_starting: dict[str, Prefix] = {}  # requests that are being let in, and what they would start from
        self.kv_planner = Planner(self.kv, self.max_num_scheduled_tokens, self.kv_faults)  # type: ignore[attr-defined]

    # -- a request comes in --------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        with self.kv_faults.guard(request, "it was being admitted"):
            tracked = tracked_of(Asked.of(params), self.kv.facts, request.num_prompt_tokens)
            if tracked is not None and request.request_id not in self.kv_requests:
                self.kv_requests[request.request_id] = tracked
                if self.kv_hidden is not None:
                    self.kv_hidden.ids.add(request.request_id)
                if params is not None and params.stop:
                    self.kv_reported.add(request.request_id)
                if (most := tracked.most_held(request.num_tokens, self.kv.facts)) is not None:
                    self._kv_cap(request, most)
        super().add_request(request)  # type: ignore[misc]

    def _kv_readmit(self, request: Request, tracked: Tracked) -> None:
        """After a preemption it is compacted where it was before, so it need not find room for all its tokens."""
        if not tracked.rounds.made:
            return
        for group, manager in self.kv.managers.items():
            again = tracked.rounds.peak(group, request.num_tokens)
            manager.peak[request.request_id] = min(again, manager.peak.get(request.request_id, again))

    def _kv_cap(self, request: Request, tokens: int) -> None:
        """A request need not find room for all its tokens at once: it never holds more than this."""
        for manager in self.kv.managers.values():
            manager.peak[request.request_id] = tokens

    def _kv_exact(self, req_id: str) -> bool:
        """Whether others may read this request's blocks: nothing of it was given up, and it is no replay."""
        tracked = self.kv_requests.get(req_id)
        return (tracked is None or tracked.shared) and not self.kv.shrunk(req_id)

    def _get_local_prefix_cache_hit(self, request: Request, *given: int | None) -> Hit:
        """A hit skips queries; leave to compute those that the policy, or a canary, wants: the last ones, or all."""
        look_up = partial(super()._get_local_prefix_cache_hit, request)  # type: ignore[misc]
        if (tracked := self.kv_requests.get(request.request_id)) is None:
            return look_up(*given)
        if (start := self._kv_start(request, tracked)) is not None:
            return start
        limit = request.num_tokens
        with self.kv_faults.guard(request, "its prompt was being read"):
            limit = tracked.hit_limit(request.num_tokens)
        found = hit_within(limit, request, look_up, given, self.kv_cache_manager)  # type: ignore[attr-defined]
        if not tracked.counted:
            request.skip_reading_prefix_cache = True  # it has read: this keeps it out of vLLM's hit rate
        return found

    # -- a compressed prefix that requests share -----------------------------------------------------

    def _kv_start(self, request: Request, tracked: Tracked) -> Hit | None:
        """The longest compressed prefix that a request may start from, as a hit in the prefix cache."""
        found = None
        with self.kv_faults.guard(request, "its prompt was being read"):
            found = self.kv_prefixes.longest(request, tracked) if tracked.shares and not tracked.apart else None
        if found is None:
            return None
        self.kv_starting[request.request_id] = found
        tracked.divided_as(found.weights)
        for group, offset in found.offsets.items():
            self.kv.managers[group].offset[request.request_id] = offset
        blocks = tuple(found.blocks[group] for group in self.kv.managers)
        return self.kv_cache_manager.create_kv_cache_blocks(blocks), found.logical, 0, False  # type: ignore[attr-defined]

    def _kv_started(self, output: SchedulerOutput) -> dict[str, str]:
        """Of the requests that were to start from a prefix in this step, those that do; the others still wait."""
        starting, self.kv_starting = self.kv_starting, {}
        taken = {}
        for req_id, prefix in starting.items():
            tracked = self.kv_requests[req_id]
            if req_id in output.num_scheduled_tokens:
                taken[req_id] = prefix.id
                self.kv.started(tracked, prefix)
                tracked.start_from(prefix, self.requests[req_id].num_prompt_tokens)  # type: ignore[attr-defined]
            else:
                tracked.apart = not (output.num_scheduled_tokens or self.running)  # type: ignore[attr-defined]
                tracked.undivided_again(prefix.weights)
                for group in prefix.offsets:
                    del self.kv.managers[group].offset[req_id]
        return taken

    def _kv_publish(self, made: list[Compaction]) -> dict[str, Prefix]:
        """By request: the prefixes that compactions of the coming step leave for others."""
        left = {}
        for each in made:
            known, req_id = each.known, each.plans[0].req_id
            if known.leaves(each.round):
                known.published = True
                prefix = self.kv_prefixes.publish(self.requests[req_id], known)  # type: ignore[attr-defined]
                if prefix is not None:
                    left[req_id] = prefix
        return left

    # -- a step --------------------------------------------------------------------------------------

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """vLLM's last word on how many tokens a step computes of a request."""
        new: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)  # type: ignore[misc]
        tracked = self.kv_requests.get(request.request_id)
        if tracked is None or not tracked.paced:
            return new
        with self.kv_faults.guard(request, PLANNING):
            physical = round(self.kv.mean_physical(request.request_id, num_computed_tokens))
            return tracked.chunk(num_computed_tokens, physical, request.num_prompt_tokens, new)
        return new

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        made = self.kv_planner.plans(self.running, self.kv_requests) if self.kv_requests else []  # type: ignore[attr-defined]
        self.kv_faults.end(self)
        if self.kv_hidden is not None:
            self.kv_hidden.plan(plan for each in made for plan in each.plans)
        left, dropped = self._kv_publish(made), self.kv_prefixes.take_dropped()
        output: SchedulerOutput = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for req_id, drafts in output.scheduled_spec_decode_tokens.items():
            if (tracked := self.kv_requests.get(req_id)) is not None:
                tracked.in_flight += len(drafts)
        taken = self._kv_started(output) if self.kv_starting else {}
        alive = [each for each in made if self._kv_alive(each.plans[0])]
        for each in alive:
            self.kv.compacted(*each)
        if made:
            with_plans(output, [plan for each in alive for plan in each.plans])
        if left or taken or dropped:
            copies = output.kv_cache_block_copies
            output.kv_cache_block_copies = unchained(copies) if copies else copies
            with_prefixes(output, PrefixNews(self._kv_left(left, alive), taken, dropped))
        return output

    def _kv_left(self, left: dict[str, Prefix], alive: list[Compaction]) -> dict[str, str]:
        """Of the prefixes that were to be left, those whose compactions are done; the others never were."""
        done = {each.plans[0].req_id for each in alive}
        for req_id in set(left) - done:
            self.kv_prefixes.drop(left[req_id].id)
        return {req_id: prefix.id for req_id, prefix in left.items() if req_id in done}

    def _kv_alive(self, plan: Plan) -> bool:
        """Whether the request still holds the plan's blocks: it may have been preempted meanwhile."""
        return plan.req_id in self.kv.managers[plan.group].offset

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        computed = request.num_computed_tokens if waits(request) else -1
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]
        tracked = self.kv_requests.get(request.request_id)
        if tracked is not None:
            tracked.in_flight = tracked.asked_from = 0
            tracked.rounds.restart(computed)
            self._kv_readmit(request, tracked)

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        if (feedback := feedback_of(model_runner_output)) is not None:
            self.kv.measured(feedback, self.kv_requests)
            self.kv_faults.heard(feedback.errors)
            self.kv_prefixes.drop_made_by(feedback.errors)
        self.kv_faults.end(self)  # what the step made of them does not count
        result = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        if self.kv_reported:
            for client in result.values():
                self._kv_report_early(client.outputs)
        self.kv_faults.tell(result)
        return result

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> Any:
        """vLLM tells here what became of the drafts of each request."""
        if (tracked := self.kv_requests.get(request_id)) is not None:
            tracked.in_flight = max(0, tracked.in_flight - num_draft_tokens)
            tracked.drafted += num_draft_tokens - (num_invalid_spec_tokens or {}).get(request_id, 0)
            tracked.accepted += num_accepted_tokens
        return super().make_spec_decoding_stats(  # type: ignore[misc]
            spec_decoding_stats,
            num_draft_tokens=num_draft_tokens,
            num_accepted_tokens=num_accepted_tokens,
            num_invalid_spec_tokens=num_invalid_spec_tokens,
            request_id=request_id,
        )

    def _kv_report_early(self, outputs: list[Any]) -> None:
        """Stop strings are found by the front end, whose abort brings no output: report with every token."""
        for output in outputs:
            if output.request_id not in self.kv_reported:
                continue
            tracked = self.kv_requests.get(output.request_id)
            request = self.requests.get(output.request_id)  # type: ignore[attr-defined]
            if tracked is not None and tracked.call is not None and request is not None:
                output.kv_transfer_params = with_record(None, tracked.call, self.kv.outcome(request, tracked).record())

    # -- it ends -------------------------------------------------------------------------------------

    def kv_record(self, request: Request) -> dict[str, Any]:
        """What there is to say about a request with a policy, while it still holds its blocks."""
        tracked = self.kv_requests.get(request.request_id)
        return {} if tracked is None else self.kv.outcome(request, tracked).record()

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        tracked = self.kv_requests.pop(request.request_id, None)
        self.kv_reported.discard(request.request_id)
        outcome = self.kv.finished(request, tracked)
        for manager in self.kv.managers.values():
            manager.peak.pop(request.request_id, None)
        transfer, encoder = super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        if tracked is not None and outcome is not None and tracked.call is not None:
            transfer = with_record(transfer, tracked.call, outcome.record())
        return transfer, encoder

    def _connector_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        if self.kv_hidden is not None and request.request_id in self.kv_hidden.ids:
            return False, None
        told: tuple[bool, dict[str, Any] | None] = super()._connector_finished(request)  # type: ignore[misc]
        return told

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        stats: SchedulerStats | None = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None and (snapshot := self.kv.snapshot(time.monotonic())) is not None:
            add_totals(stats, snapshot)
        return stats

    def check_integrity(self) -> None:
        """Raise AssertionError if requests, managers and pool do not agree; for tests."""
        for manager in self.kv.managers.values():
            manager.check_integrity(self.kv_prefixes)
            assert set(manager.offset) <= set(self.kv_requests), "offset of a request that is gone"
            assert set(manager.peak) <= set(self.kv_requests), "admission cap of a request that is gone"
        self.kv_prefixes.check_integrity()
        assert not self.kv_starting, "request that was let in halfway"
        assert self.kv_reported <= set(self.kv_requests), "reported request that has no policy"
        assert set(self.kv_requests) <= set(self.requests), "tracked request that vLLM does not know"  # type: ignore[attr-defined]


class KVSyncScheduler(_Compressing, Scheduler):
    """Used when asynchronous scheduling is off."""


class KVAsyncScheduler(_Compressing, AsyncScheduler):
    """Used when asynchronous scheduling is on."""


class KVScheduler(Scheduler):
    """The class to name in --scheduler-cls: becomes the synchronous or the asynchronous one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        vllm_config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        chosen = KVAsyncScheduler if vllm_config.scheduler_config.async_scheduling else KVSyncScheduler
        if vllm_config.parallel_config._api_process_count > 1:
            kwargs["log_stats"] = True  # as with one, where a stat logger plug-in overrules --disable-log-stats
        return chosen(*args, **kwargs)

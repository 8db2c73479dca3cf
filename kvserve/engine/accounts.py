"""The books of the scheduler: who holds how much, what it would hold uncompressed, what was freed."""

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.request import Request

from kvserve.channels import Feedback, Plan
from kvserve.engine.blocks import CompressibleManager
from kvserve.engine.prefixes import Prefix
from kvserve.engine.rounds import Round
from kvserve.engine.spec import is_compressible, note
from kvserve.engine.tracked import Tracked
from kvserve.policy import request as wire
from kvserve.startup.facts import keep, made_of
from kvserve.stats import SECONDS, SHARES, SHOWN, EngineTotals, Outcome, PolicyTotals, Running, SharedPrefix, short_id

FULL = "full"
SNAPSHOT_SECONDS = 0.25


class Accounts:
    """Reads vLLM's block managers and keeps the totals that metrics and responses show."""

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.kv_cache_config
        coordinator = scheduler.kv_cache_manager.coordinator
        self._scheduler = scheduler
        self._all_managers = coordinator.single_type_managers
        self.managers: dict[int, CompressibleManager] = {
            i: m for i, m in enumerate(self._all_managers) if isinstance(m, CompressibleManager)
        }
        self.layers = [note(config.kv_cache_groups[i].kv_cache_spec, "layers") for i in self.managers]
        self.bundles = [len(layers) for layers in self.layers]
        self.facts = made_of(scheduler.vllm_config, config)
        keep(scheduler.vllm_config, self.facts)  # for an API in this process
        ranks = scheduler.vllm_config.parallel_config.tensor_parallel_size
        self._block_bytes = [
            group.kv_cache_spec.page_size_bytes * _layers(group) * ranks for group in config.kv_cache_groups
        ]
        pool = max(self._block_bytes, default=0) * (config.num_blocks - 1)
        self.totals = EngineTotals(pool_bytes=pool)
        self._changed = True
        self._sent = 0.0
        self._booked: dict[str, tuple[int, int]] = {}  # prompt and generated tokens of requests under way

    # -- lengths -------------------------------------------------------------------------------------

    def mean_physical(self, req_id: str, logical: int) -> float:
        """Tokens held per layer, mean over the compressible layers."""
        held = [m.physical(req_id, logical) * n for m, n in zip(self.managers.values(), self.bundles, strict=True)]
        return sum(held) / max(1, sum(self.bundles))

    def shrunk(self, req_id: str) -> bool:
        """Whether any layer group has given up tokens of this request."""
        return any(req_id in manager.offset for manager in self.managers.values())

    def held_bytes(self, req_id: str, logical: int) -> tuple[int, int]:
        """Bytes of the blocks held, and of those held if nothing had been evicted; shared blocks count whole."""
        resident = full = 0
        for i, manager in enumerate(self._all_managers):
            blocks = sum(not block.is_null for block in manager.req_to_blocks.get(req_id, ()))
            whole = max(blocks, cdiv(logical, manager.block_size)) if i in self.managers else blocks
            resident += blocks * self._block_bytes[i]
            full += whole * self._block_bytes[i]
        return resident, full

    def shared_bytes(self, req_ids: Sequence[str]) -> int:
        """How much of the sum of what these requests hold is counted more than once, since they share blocks."""
        total = 0
        for manager, size in zip(self._all_managers, self._block_bytes, strict=True):
            blocks = [b.block_id for r in req_ids for b in manager.req_to_blocks.get(r, ()) if not b.is_null]
            total += (len(blocks) - len(set(blocks))) * size
        return total

    def blocks_needed(self, req_id: str, logical: int, new: int) -> int:
        """Blocks that a running request must be given before `new` more tokens have a slot."""
        after = logical + new
        return sum(m.get_num_blocks_to_allocate(req_id, after, (), logical, logical, after) for m in self._all_managers)

    def free_blocks(self) -> int:
        return int(self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    # -- events --------------------------------------------------------------------------------------

    def compacted(self, known: Tracked, done: Round, plans: Sequence[Plan], freed: int) -> None:
        """Book a round when it goes to the workers; what is done again after a preemption is booked already."""
        if done.booked:
            return
        done.booked = True
        known.compactions += 1
        totals = self.totals.of(known.policy.name)
        sizes = dict(zip(self.managers, self.bundles, strict=True))
        totals.compactions += 1
        totals.blocks_freed += freed
        totals.evicted += sum((p.held - p.keep) * sizes[p.group] for p in plans) / sum(self.bundles)
        self._changed = True

    def started(self, known: Tracked, prefix: Prefix) -> None:
        """A request does not have to read a compressed prefix; after a preemption it is not counted again."""
        prefix.used = time.monotonic()
        if known.shared_tokens:
            return
        prefix.hits += 1
        totals = self.totals.of(known.policy.name)
        totals.prefix_hits += 1
        totals.prefix_tokens += prefix.logical
        self._changed = True

    def relieved(self, tracked: Tracked) -> None:
        """A compaction that only the pressure on the pool made due."""
        self.totals.of(tracked.policy.name).pressure_compactions += 1

    def preemption_avoided(self) -> None:
        self.totals.preemptions_avoided += 1

    def failed(self, policy: str) -> None:
        """A request that its policy's own code has ended."""
        self.totals.of(policy).errors += 1
        self._changed = True

    def measured(self, feedback: Feedback, tracked: Mapping[str, Tracked]) -> None:
        """Book what a worker reports; what it says of requests that have ended meanwhile is lost."""
        for policy, seconds in feedback.seconds.items():
            for value in seconds:
                self.totals.of(policy).seconds.add(SECONDS, value)
        for req_id, merged in feedback.merged.items():
            if (known := tracked.get(req_id)) is not None:
                known.merged += merged
                self.totals.of(known.policy.name).merged += merged
        for req_id, weights in feedback.weights.items():
            if req_id in tracked and tracked[req_id].weights is None:  # those of its first time, if it was preempted
                tracked[req_id].weights = weights
        self._changed = True

    def outcome(self, request: Request, tracked: Tracked) -> Outcome:
        """What became of a request so far; call it while it still holds its blocks."""
        # The last token's keys are never computed; asynchronous steps may have run ahead of the end.
        logical = max(0, min(request.num_computed_tokens, request.num_tokens - 1))
        kept = self.mean_physical(request.request_id, logical)
        resident, full = self.held_bytes(request.request_id, logical)
        return Outcome(
            policy=tracked.policy.name,
            budget=wire.shown_budget(tracked.policy),
            logical_tokens=logical,
            kept_tokens=kept,
            evicted_tokens=logical - kept,
            merged_tokens=tracked.merged,
            compactions=tracked.compactions,
            resident_bytes=resident,
            full_bytes=full,
            draft_tokens=tracked.drafted if tracked.drafts else None,
            accepted_tokens=tracked.accepted if tracked.drafts else None,
            shared_tokens=tracked.shared_tokens if tracked.policy.share else None,
            granularity="group" if tracked.policy.bundled(self.facts) else None,
        )

    def finished(self, request: Request, tracked: Tracked | None) -> Outcome | None:
        """Book the end of a request, before its blocks are freed; its outcome if it had a policy."""
        if tracked is not None and not tracked.counted:
            return None
        totals = self._book_tokens(request, tracked)
        del self._booked[request.request_id]
        totals.requests += 1
        self._changed = True
        if tracked is None:
            return None
        outcome = self.outcome(request, tracked)
        if outcome.logical_tokens:
            totals.kept.add(SHARES, outcome.kept_tokens / outcome.logical_tokens)
        return outcome

    def _book_tokens(self, request: Request, tracked: Tracked | None) -> PolicyTotals:
        """Book what a request has read and written since it was last looked at; after a preemption it reads again."""
        totals = self.totals.of(tracked.policy.name if tracked else FULL)
        read, written = self._booked.get(request.request_id, (0, 0))
        now = max(read, min(request.num_computed_tokens, request.num_prompt_tokens)), request.num_output_tokens
        totals.prompt_tokens += now[0] - read
        totals.generated_tokens += now[1] - written
        self._booked[request.request_id] = now
        return totals

    # -- report --------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> str | None:
        """The totals as text, at most a few times a second, and at once when the last request ends."""
        running, waiting = self._users()
        if running and now - self._sent < SNAPSHOT_SECONDS:
            return None
        self._sent = now
        for request in running:
            self._book_tokens(request, self._scheduler.kv_requests.get(request.request_id))
        held = [self.held_bytes(r.request_id, r.num_computed_tokens) for r in running]
        shared = self.shared_bytes([r.request_id for r in running])
        state = {
            "resident_bytes": sum(resident for resident, _ in held) - shared,
            "full_bytes": sum(full for _, full in held) - shared,
            "running": [self._shown(*pair) for pair in zip(running[:SHOWN], held, strict=False)],
            "requests_running": len(running),
            "requests_waiting": waiting,
            "prefix_bytes": sum(self._bytes_of(each) for each in self._scheduler.kv_prefixes),
            "prefixes": [self._shown_prefix(each, now) for each in islice(self._scheduler.kv_prefixes, SHOWN)],
        }
        if not self._changed and state.items() <= vars(self.totals).items():
            return None
        vars(self.totals).update(state)
        self._changed = False
        return self.totals.dump()

    def _users(self) -> tuple[list[Request], int]:
        """Running requests and the number of waiting ones, without the replays of a canary."""
        running, waiting = self._scheduler.running, self._scheduler.get_request_counts()[1]
        tracked = self._scheduler.kv_requests
        replays = {req_id for req_id, each in tracked.items() if not each.counted}
        if not replays:
            return running, waiting
        users = [request for request in running if request.request_id not in replays]
        return users, waiting - (len(replays) - (len(running) - len(users)))

    def _bytes_of(self, prefix: Prefix) -> int:
        return sum(len(blocks) * self._block_bytes[group] for group, blocks in prefix.blocks.items())

    def _shown_prefix(self, prefix: Prefix, now: float) -> SharedPrefix:
        """One line of the list of compressed prefixes."""
        lost = [prefix.offsets.get(g, 0) * n for g, n in zip(self.managers, self.bundles, strict=True)]
        return SharedPrefix(
            id=prefix.id,
            policy=prefix.policy.name,
            budget=wire.shown_budget(prefix.policy),
            logical_tokens=prefix.logical,
            kept_tokens=prefix.logical - sum(lost) / sum(self.bundles),
            bytes=self._bytes_of(prefix),
            hits=prefix.hits,
            age_seconds=round(now - prefix.made, 1),
            idle_seconds=round(now - prefix.used, 1),
        )

    def _shown(self, request: Request, held: tuple[int, int]) -> Running:
        """One line of the list of running requests; `held` as by `held_bytes`."""
        tracked, logical = self._scheduler.kv_requests.get(request.request_id), request.num_computed_tokens
        return Running(
            id=short_id(request.request_id),
            policy=tracked.policy.name if tracked else FULL,
            budget=wire.shown_budget(tracked.policy) if tracked else None,
            stage="prefill" if logical < request.num_prompt_tokens else "decode",
            logical_tokens=logical,
            kept_tokens=self.mean_physical(request.request_id, logical),
            resident_bytes=held[0],
            full_bytes=held[1],
        )


def _layers(group: Any) -> int:
    """How many layers a group has: of ours, the scheduler is given the names of the first pipeline stage only."""
    spec = group.kv_cache_spec
    return len(note(spec, "layers")) if is_compressible(spec) else len(group.layer_names)

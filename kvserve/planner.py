"""Who is compacted before the coming step, and how blocks are found when the pool runs out."""

from collections.abc import Mapping, Sequence

from vllm.v1.request import Request

from kvserve.accounts import Accounts
from kvserve.plan import Plan
from kvserve.tracked import Tracked


class Planner:
    """Turns due compactions into plans; the blocks that they free are free when it returns."""

    def __init__(self, accounts: Accounts, step_tokens: int) -> None:
        self._accounts = accounts
        self._step_tokens = step_tokens  # vLLM schedules at most this many tokens per step
        self.deferred = 0  # due compactions that found no destination blocks

    def plans(self, running: Sequence[Request], tracked: Mapping[str, Tracked]) -> list[Plan]:
        """Plans for all running requests, in their order; then relief if the step would not fit."""
        plans: list[Plan] = []
        relief: list[tuple[int, Request, Tracked]] = []
        for request in running:
            known = tracked.get(request.request_id)
            if known is None or request.num_computed_tokens == 0:
                continue
            logical = request.num_computed_tokens
            physical = round(self._accounts.mean_physical(request.request_id, logical))
            keep = known.due(logical, physical, request.is_prefill_chunk)
            if keep is not None:
                plans += self._compact(request, known, keep)
            elif known.policy.when == "pressure" and not request.is_prefill_chunk:
                relief.append((physical - known.policy.target(logical), request, known))
        if relief:
            plans += self._relieve(running, relief)
        return plans

    def _relieve(self, running: Sequence[Request], candidates: list[tuple[int, Request, Tracked]]) -> list[Plan]:
        """Compact those who allow it under pressure, largest excess first, until the coming step fits."""
        shortage = self._shortage(running)
        if shortage <= 0:
            return []
        plans: list[Plan] = []
        for excess, request, known in sorted(candidates, key=lambda c: c[0], reverse=True):
            if excess <= 0:
                break
            made = self._compact(request, known, known.policy.target(request.num_computed_tokens))
            if made:
                plans += made
                self._accounts.relieved(known)
            if self._shortage(running) <= 0:
                self._accounts.preemption_avoided()
                break
        return plans

    def _shortage(self, running: Sequence[Request]) -> int:
        """Blocks that the running requests need for the coming step beyond the free ones."""
        room, need = self._step_tokens, 0
        for request in running:
            done = request.num_computed_tokens
            new = min(request.num_tokens_with_spec + request.num_output_placeholders - done, room)
            room -= new
            need += self._accounts.blocks_needed(request.request_id, done, new)
        return need - self._accounts.free_blocks()

    def _compact(self, request: Request, known: Tracked, keep: int) -> list[Plan]:
        req_id, logical = request.request_id, request.num_computed_tokens
        plans = []
        mean = round(self._accounts.mean_physical(req_id, logical))
        by_group = known.keep_by_group(keep, mean, self._accounts.bundles)
        for (group, manager), count in zip(self._accounts.managers.items(), by_group, strict=True):
            held = manager.physical(req_id, logical)
            if held <= count:
                continue
            moved = manager.compact(req_id, logical, count)
            if moved is None:
                known.overdue = True
                self.deferred += 1
                continue
            known.blocks_freed += moved.freed
            plans.append(Plan(req_id, group, logical, held, count, tuple(moved.src), tuple(moved.dst)))
        if plans:
            known.compactions += 1
            self._accounts.compacted(known, plans)
        return plans

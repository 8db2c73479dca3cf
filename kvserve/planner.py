"""Who is compacted before the coming step, and how blocks are found when the pool runs out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vllm.v1.request import Request

from kvserve.accounts import Accounts
from kvserve.plan import Plan
from kvserve.tracked import Tracked


class _Candidate(NamedTuple):
    """A running request with a policy, and the tokens that it holds per layer (mean)."""

    request: Request
    known: Tracked
    physical: int

    @property
    def excess(self) -> int:
        """Tokens held over the target of its policy."""
        request = self.request
        policy = self.known.policy
        return self.physical - policy.target(request.num_computed_tokens, policy.prompt_of(request.num_prompt_tokens))


class Planner:
    """Turns due compactions into plans; the blocks that they free are free when it returns."""

    def __init__(self, accounts: Accounts, step_tokens: int) -> None:
        self._accounts = accounts
        self._step_tokens = step_tokens  # vLLM schedules at most this many tokens per step

    def plans(self, running: Sequence[Request], tracked: Mapping[str, Tracked]) -> list[Plan]:
        """Plans for all running requests, in their order; then relief if the step would not fit."""
        plans: list[Plan] = []
        relief: list[_Candidate] = []
        for request in running:
            known = tracked.get(request.request_id)
            if known is None or request.num_computed_tokens == 0:
                continue
            logical = request.num_computed_tokens
            physical = round(self._accounts.mean_physical(request.request_id, logical))
            keep = known.due(logical, physical, request.num_prompt_tokens, request.is_prefill_chunk)
            candidate = _Candidate(request, known, physical)
            if keep is not None:
                plans += self._compact(candidate, keep)
            elif known.policy.when == "pressure" and not request.is_prefill_chunk:
                relief.append(candidate)
        if relief:
            plans += self._relieve(running, relief)
        return plans

    def _relieve(self, running: Sequence[Request], candidates: list[_Candidate]) -> list[Plan]:
        """Compact those who allow it under pressure, largest excess first, until the coming step fits."""
        shortage = self._shortage(running)
        if shortage <= 0:
            return []
        plans: list[Plan] = []
        for candidate in sorted(candidates, key=lambda c: c.excess, reverse=True):
            if candidate.excess <= 0:
                break
            made = self._compact(candidate, candidate.physical - candidate.excess)
            if made:
                plans += made
                self._accounts.relieved(candidate.known)
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

    def _compact(self, candidate: _Candidate, keep: int) -> list[Plan]:
        request, known, physical = candidate
        req_id, logical = request.request_id, request.num_computed_tokens
        plans, freed = [], 0
        by_group = known.keep_by_group(keep, physical, self._accounts.layers)
        for (group, manager), count in zip(self._accounts.managers.items(), by_group, strict=True):
            held = manager.physical(req_id, logical)
            if held <= count:
                continue
            moved = manager.compact(req_id, logical, count)
            if moved is None:
                known.overdue = True
                continue
            freed += moved.freed
            plans.append(Plan(req_id, group, logical, held, count, tuple(moved.src), tuple(moved.dst)))
        if plans:
            known.compactions += 1
            self._accounts.compacted(known, plans, freed)
        return plans

"""Who is compacted before the coming step, and how blocks are found when the pool runs out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vllm.v1.request import Request

from kvserve.channels import Plan
from kvserve.engine.accounts import Accounts
from kvserve.engine.faults import Faults
from kvserve.engine.rounds import Round
from kvserve.engine.tracked import Tracked

PLANNING = "its compactions were being planned"


class _Candidate(NamedTuple):
    """A running request with a policy, and the tokens that it holds per layer (mean)."""

    request: Request
    known: Tracked
    physical: int
    excess: int = 0  # tokens over the target of its policy, if that matters


class Compaction(NamedTuple):
    """One round of one request: plans for the layer groups that lose something."""

    known: Tracked
    round: Round
    plans: list[Plan]
    freed: int  # blocks


class Planner:
    """Turns due compactions into plans; the blocks that they free are free when it returns."""

    def __init__(self, accounts: Accounts, step_tokens: int, faults: Faults) -> None:
        self._accounts = accounts
        self._faults = faults
        self._step_tokens = step_tokens  # vLLM schedules at most this many tokens per step

    def plans(self, running: Sequence[Request], tracked: Mapping[str, Tracked]) -> list[Compaction]:
        """What is due of all running requests, in their order; then relief if the step would not fit."""
        made: list[Compaction] = []
        relief: list[_Candidate] = []
        for request in running:
            known = tracked.get(request.request_id)
            if known is None or request.num_computed_tokens < known.asked_from or known.in_flight:
                continue
            if request.num_computed_tokens == 0 or waits(request):
                continue
            with self._faults.guard(request, PLANNING):
                made += self._due(request, known, relief)
        if relief:
            made += self._relieve(running, relief)
        return made

    def _due(self, request: Request, known: Tracked, relief: list[_Candidate]) -> list[Compaction]:
        """What is due of one request; if nothing is, and it would help others, it joins `relief`."""
        logical, prompt = request.num_computed_tokens, request.num_prompt_tokens
        candidate = _Candidate(request, known, round(self._accounts.mean_physical(request.request_id, logical)))
        if logical <= known.rounds.redo:
            return self._repeat(candidate)
        keep = known.due(logical, candidate.physical, prompt)
        if keep is not None:
            return self._compact(candidate, keep)
        if known.policy.when == "pressure" and not request.is_prefill_chunk:
            relief.append(candidate._replace(excess=known.excess(logical, candidate.physical, prompt)))
        return []

    def _relieve(self, running: Sequence[Request], candidates: list[_Candidate]) -> list[Compaction]:
        """Compact those who allow it under pressure, largest excess first, until the coming step fits."""
        shortage = self._shortage(running)
        if shortage <= 0:
            return []
        relief: list[Compaction] = []
        for candidate in sorted(candidates, key=lambda c: c.excess, reverse=True):
            if candidate.excess <= 0:
                break
            made: list[Compaction] = []
            with self._faults.guard(candidate.request, PLANNING):
                made = self._compact(candidate, candidate.physical - candidate.excess)
            if made:
                relief += made
                self._accounts.relieved(candidate.known)
            if self._shortage(running) <= 0:
                self._accounts.preemption_avoided()
                break
        return relief

    def _shortage(self, running: Sequence[Request]) -> int:
        """Blocks that the running requests need for the coming step beyond the free ones."""
        room, need = self._step_tokens, 0
        for request in running:
            done = request.num_computed_tokens
            new = min(request.num_tokens_with_spec + request.num_output_placeholders - done, room)
            room -= new
            need += self._accounts.blocks_needed(request.request_id, done, new)
        return need - self._accounts.free_blocks()

    def _compact(self, candidate: _Candidate, keep: int) -> list[Compaction]:
        """To `keep` tokens per layer (mean); nothing if no group can lose any now."""
        known = candidate.known
        counts = known.keep_by_group(keep, candidate.physical, self._accounts.layers)
        plans, freed = self._shrink(candidate, dict(zip(self._accounts.managers, counts, strict=True)))
        if not plans:
            return []
        done = Round(candidate.request.num_computed_tokens, {plan.group: plan.keep for plan in plans})
        known.rounds.made.append(done)
        return [Compaction(known, done, plans, freed)]

    def _repeat(self, candidate: _Candidate) -> list[Compaction]:
        """The round that a preemption undid, if this is where it was."""
        again = candidate.known.rounds.again(candidate.request.num_computed_tokens)
        if again is None:
            return []
        plans, freed = self._shrink(candidate, again.keep, again.booked)
        return [Compaction(candidate.known, again, plans, freed)] if plans else []

    def _shrink(self, candidate: _Candidate, counts: Mapping[int, int], again: bool = False) -> tuple[list[Plan], int]:
        """Plans for the groups that hold more than `counts` says, and how many blocks they give back."""
        req_id, logical = candidate.request.request_id, candidate.request.num_computed_tokens
        plans, freed = [], 0
        for group, count in counts.items():
            manager = self._accounts.managers[group]
            held = manager.physical(req_id, logical)
            if held <= count:
                continue
            moved = manager.compact(req_id, logical, count)
            if moved is None:
                candidate.known.overdue = True
                continue
            freed += moved.freed
            plans.append(Plan(req_id, group, logical, held, count, tuple(moved.src), tuple(moved.dst), again))
        return plans, freed


def waits(request: Request) -> bool:
    """Whether all of its tokens are computed or on their way: pipeline stages have a step of it whose token is unknown.

    It is compacted once that is known, as without stages: the step may end the request.
    """
    return bool(request.num_computed_tokens >= request.num_tokens_with_spec + request.num_output_placeholders)

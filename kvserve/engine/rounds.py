"""The compactions of one request, which a preemption undoes: they are done again at the same lengths.

Without that a request that is computed again would be compacted elsewhere, since its prompt and what it has generated
come in other chunks, and would go on differently from what its client has read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Round:
    """One compaction, as it was decided."""

    logical: int  # tokens seen
    keep: dict[int, int]  # by layer group, those that lost something
    booked: bool = field(
        default=False, compare=False
    )  # whether it is in the counts: it may have been decided, and undone before it was done


@dataclass
class Rounds:
    """All rounds so far, and since a preemption how far they have been repeated."""

    made: list[Round] = field(default_factory=list)
    decided: int = -1  # at the lengths up to this one it is decided whether to compact
    restarted: bool = False  # there was a preemption
    redo: int = -1  # since then: up to this length rounds are repeated, and nothing is decided
    _repeated: int = 0
    _undecided: int = -1  # length at which the next decision was due when it was preempted

    def restart(self, undecided: int = -1) -> None:
        """The request is computed again from its first token.

        undecided: the length that it had come to, if a step in flight kept it from being decided there.
        """
        self.restarted, self.redo, self._repeated = True, self.decided, 0
        self._undecided = max(self._undecided, undecided)

    def begin_like(self, others: Sequence[Round]) -> bool:
        """Whether a request that these are the rounds of may start from where others have led."""
        return not self.made or self.made[: len(others)] == others

    def begin_with(self, others: Sequence[Round]) -> None:
        """The request starts from where these rounds of another one, or its own, have led; all are booked."""
        if not self.made:
            self.made = list(others)
        self.decided = max(self.decided, others[-1].logical)
        self._repeated = len(others)

    def again(self, logical: int) -> Round | None:
        """The round to do again now, if one is left; each is handed out once."""
        left = self.made[self._repeated :]
        if not left or left[0].logical > logical:
            return None
        self._repeated += 1
        return left[0]

    def chunk(self, logical: int, prompt: int, new: int) -> int | None:
        """How many of the `new` tokens come before the next length at which there was a choice; None past them all."""
        ends = [prompt, self.redo, self._undecided, *(each.logical for each in self.made[self._repeated :])]
        left = [end - logical for end in ends if end > logical]
        return min(new, *left) if left else None

    def peak(self, group: int, tokens: int) -> int:
        """Most tokens that a group holds at once while `tokens` are computed again, if no new round helps."""
        peak = offset = 0
        for each in self.made:
            peak = max(peak, each.logical - offset)
            offset = each.logical - each.keep.get(group, each.logical - offset)
        return max(peak, tokens - offset)

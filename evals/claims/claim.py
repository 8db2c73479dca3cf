"""A claim of a paper, what is asked to test it, and the rule that turns numbers into a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evals.claims.answers import Answers
from evals.claims.ask import Ask
from evals.intervals import Estimate

REPRODUCED, PARTLY, NOT, UNTESTED = "reproduced", "partly", "not reproduced", "cannot be tested here"
RULE = (
    "a condition holds if its whole 95 % interval lies above the bar, fails if none of it does, and is open otherwise. "
    "Reproduced: all hold; not reproduced: fewer than half of those that are not open hold; partly: the rest; cannot "
    "be tested here: there is no condition, all are open, or the model cannot do the task at full cache"
)
HOLDS, FAILS, OPEN = "holds", "fails", "open"


class Condition(NamedTuple):
    """Something that must lie above a bar if the claim is right."""

    text: str
    found: Estimate
    bar: float
    unit: str  # "%" for shares, shown times 100; else as it stands: "nats", ""

    @property
    def state(self) -> str:
        """By `RULE`."""
        return HOLDS if self.found.low > self.bar else FAILS if self.found.high <= self.bar else OPEN


class Figures(NamedTuple):
    """A table of estimates that no server was asked for."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, list[Estimate]]]
    unit: str = ""


class Findings(NamedTuple):
    """What a claim is judged by, and what else was seen."""

    conditions: list[Condition]
    figures: list[Figures] = []


Books = Mapping[str, Answers]
"""What each server has said, by its name."""
Looks = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    name: str
    paper: str
    says: str  # with where the paper says it
    why: str  # what the outcome hangs on
    asks: tuple[Ask, ...] = ()
    judge: Callable[[Books], Findings] | None = None
    look: Callable[[int], Findings] | None = None  # instead of asking a server: number of items -> findings

    @property
    def untested(self) -> bool:
        return self.judge is None and self.look is None


def verdict(conditions: Sequence[Condition]) -> str:
    """By `RULE`."""
    decided = [condition.state == HOLDS for condition in conditions if condition.state != OPEN]
    if not decided:
        return UNTESTED
    if 2 * sum(decided) < len(decided):
        return NOT
    return REPRODUCED if sum(decided) == len(conditions) else PARTLY

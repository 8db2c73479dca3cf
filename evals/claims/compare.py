"""Conditions that many claims share: one cell against another on the same items."""

from collections.abc import Iterable

from evals.cells import Cell
from evals.claims.answers import Answers, balance, full
from evals.claims.claim import Condition
from evals.markdown import budget_name

POINTS, NATS = "%", "nats"
TOLERATED = 0.05
"""Loss of exact match that counts as none: 5 points; two samples of 200 cannot tell less apart."""


def cell(task: str, length: int, policy: str, budget: float, protocol: str = "inside") -> Cell:
    return Cell(task, "completion", length, protocol, policy, budget)


def better(answers: Answers, ours: Cell, theirs: Cell, measure: str = "score") -> Condition:
    """Ours beats theirs: more right answers, or less NLL."""
    signs = ([ours], [theirs]) if measure == "score" else ([theirs], [ours])
    found = balance(*([answers.values(each, measure) for each in side] for side in signs))
    return Condition(f"{_than(ours, theirs)}: {_gain(ours.task, measure)}", found, 0.0, _unit(measure))


def no_worse(answers: Answers, ours: Cell, theirs: Cell, bar: float = TOLERATED) -> Condition:
    """Ours is right nearly as often as theirs."""
    found = balance([answers.values(ours)], [answers.values(theirs)])
    return Condition(f"{_than(ours, theirs)}: {_gain(ours.task, 'score')}", found, -bar, POINTS)


def lossless(answers: Answers, ours: Cell, share: float = 0.02) -> Condition:
    """The NLL is at most `share` of the full cache's above it."""
    whole = full(ours)
    found = balance([answers.values(whole, "nll")], [answers.values(ours, "nll")])
    bar = -share * answers.mean(whole, "nll").mean
    return Condition(f"{_than(ours, whole)}: {_gain(ours.task, 'nll')}", found, bar, NATS)


def each(policies: Iterable[str], budgets: Iterable[float]) -> list[tuple[str, float]]:
    """All pairs, policy by policy."""
    budgets = tuple(budgets)
    return [(policy, budget) for policy in policies for budget in budgets]


def _than(ours: Cell, theirs: Cell) -> str:
    same = theirs.budget in (ours.budget, 1.0)
    there = theirs.policy if same else f"{theirs.policy} at {budget_name(theirs.budget)}"
    here = ours.policy if ours.budget == 1.0 else f"{ours.policy} at {budget_name(ours.budget)}"
    return f"{here} against {there}"


def _gain(task: str, measure: str) -> str:
    if measure == "nll":
        return f"NLL saved, {task}"
    return "right steps gained, chain" if task == "chain" else f"exact match gained, {task}"


def _unit(measure: str) -> str:
    return POINTS if measure == "score" else NATS

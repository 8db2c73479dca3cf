"""How right an answer is, 0 to 1."""

from collections.abc import Callable

from evals.ruler import RULER, SEPARATOR

Scorer = Callable[[str, str], float]  # (said, wanted)


def exact(said: str, wanted: str) -> float:
    """1 if the answer is the wanted one, but for white space around it."""
    return float(said.strip() == wanted.strip())


def steps(said: str, wanted: str) -> float:
    """The share of the wanted lines that stand where they should, but for the closing one, which tells nothing.

    A long trace is seldom right as a whole.
    """
    lines, told = wanted.strip().splitlines()[:-1], said.strip().splitlines()
    return sum(map(str.__eq__, lines, told)) / len(lines)


def named(said: str, wanted: str) -> float:
    """The share of the wanted values that are named, wherever and in whatever order: RULER's measure."""
    values = wanted.strip().split(SEPARATOR)
    return sum(value.lower() in said.lower() for value in values) / len(values)


SCORERS: dict[str, Scorer] = {"chain": steps, **dict.fromkeys(RULER, named)}
"""Tasks that are not scored by exact match."""
MEASURES: dict[Scorer, str] = {exact: "exact match", steps: "right steps", named: "values found"}


def measure(task: str) -> str:
    """What the score of a task is the share of."""
    return MEASURES[SCORERS.get(task, exact)]


def score(task: str, said: str, wanted: str) -> float:
    return SCORERS.get(task, exact)(said, wanted)

"""How right an answer is, 0 to 1."""

from collections.abc import Callable

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


SCORERS: dict[str, Scorer] = {"chain": steps}
"""Tasks that are not scored by exact match."""


def score(task: str, said: str, wanted: str) -> float:
    return SCORERS.get(task, exact)(said, wanted)

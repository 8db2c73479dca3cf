"""What one server has answered, as values by item: means, and paired sums and differences."""

from collections.abc import Sequence

from evals.cells import FULL, Cell
from evals.intervals import Estimate, bootstrap, estimate
from evals.journal import EvalJournal

Values = dict[int, float]
MEASURES = ("score", "nll")


class Missing(Exception):
    """Nothing is known of a cell; the message says why."""


class Answers:
    """Reads a book."""

    def __init__(self, book: EvalJournal) -> None:
        self._book = book

    def values(self, cell: Cell, measure: str = "score") -> Values:
        """By item: 0 to 1 for `score`, nats per token for `nll`. Raises Missing."""
        if measure == "nll" and (forced := self._book.forced.get(cell)):
            return {item: found.nll for item, found in forced.items()}
        if measure == "score" and (scores := self._book.scores.get(cell)):
            return {item: found[0] for item, found in scores.items()}
        raise Missing(f"{cell.policy} at {cell.budget} in {cell.task}: {self._book.refused.get(cell, 'not asked')}")

    def mean(self, cell: Cell, measure: str = "score") -> Estimate:
        return estimate(list(self.values(cell, measure).values()))


def full(cell: Cell) -> Cell:
    """The same questions at full cache."""
    return cell._replace(policy=FULL, budget=1.0)


def balance(plus: Sequence[Values], minus: Sequence[Values]) -> Estimate:
    """Sum of the ones minus sum of the others on the items that all have, resampled item by item."""
    shared = sorted(set.intersection(*(set(values) for values in (*plus, *minus))))
    return bootstrap([sum(v[item] for v in plus) - sum(v[item] for v in minus) for item in shared])

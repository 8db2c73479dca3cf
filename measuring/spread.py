"""Median and quartiles of repetitions."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Of a handful of values, in their unit."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises ValueError for no values; one value is its own quartiles."""
        if not values:
            raise ValueError("no values were measured")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)


def paired_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    """Median of the ratios of values measured next to each other: what disturbs both cancels out."""
    return statistics.median(v / r for v, r in zip(values, references, strict=True))

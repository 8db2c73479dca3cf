"""Intervals at 95 %: Wilson's for yes or no, the bootstrap's for everything else and for differences."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

Z = 1.959964  # of the normal distribution at 97.5 %
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float


def wilson(successes: float, trials: int) -> Estimate:
    """The share that `successes` of `trials` estimate."""
    share, spread = successes / trials, Z * Z / trials
    centre = (share + spread / 2) / (1 + spread)
    radius = Z / (1 + spread) * sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return Estimate(share, max(0.0, centre - radius), min(1.0, centre + radius))


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of values, resampled with replacement; percentile bounds."""
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return Estimate(float(data.mean()), float(low), float(high))


def estimate(values: Sequence[float]) -> Estimate:
    """Wilson's interval if all values are 0 or 1, else the bootstrap's."""
    if set(values) <= {0.0, 1.0}:
        return wilson(sum(values), len(values))
    return bootstrap(values)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Ours minus theirs on the same items, in the same order: resampled item by item, so that hard items cancel out."""
    return bootstrap([a - b for a, b in zip(ours, theirs, strict=True)])

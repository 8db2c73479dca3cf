"""Intervals against what is known of them."""

from math import sqrt

import numpy as np
import pytest

from evals.intervals import bootstrap, difference, estimate, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (5, 10), (10, 10), (150, 200), (199, 200)])
def test_wilson(successes, trials):
    """Its bounds are the two shares p from which the one found is 1.96 of p's own standard errors away."""
    share, low, high = wilson(successes, trials)
    assert share == successes / trials
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(share - bound) / sqrt(bound * (1 - bound) / trials) == pytest.approx(1.96, abs=1e-3)
    assert low < share or (successes == 0 and low == 0)
    assert high > share or (successes == trials and high == pytest.approx(1))


def test_bootstrap_is_the_normal_interval_for_many_values():
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    found, half = bootstrap(values), 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap(values) == found


def test_they_cover_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(5), 0
    for _ in range(300):
        values = (rng.random(200) < 0.3).astype(float)
        found = estimate(values.tolist())
        hits += found.low <= 0.3 <= found.high
    assert 0.91 <= hits / 300 <= 0.985


def test_the_kind_follows_the_values():
    yes_or_no, shares = [1.0, 0.0, 1.0, 1.0], [0.5, 0.25, 1.0, 0.75]
    assert estimate(yes_or_no) == wilson(3, 4)
    assert estimate(shares) == bootstrap(shares)


def test_pairs_cancel_what_makes_items_hard():
    hard = np.random.default_rng(1).random(200)
    ours, theirs = hard + 0.02, hard
    assert difference(ours, theirs).low == pytest.approx(0.02)
    assert bootstrap(ours).low < bootstrap(theirs).high

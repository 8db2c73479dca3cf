"""Teacher-forced measures on made-up distributions."""

from math import log

import pytest

from evals.forced import divergence, forced


def logs(**shares):
    return {int(token[1:]): log(share) for token, share in shares.items()}


def test_divergence_of_whole_distributions():
    full, ours = logs(t1=0.5, t2=0.25, t3=0.25), logs(t1=0.25, t2=0.25, t3=0.5)
    assert divergence(full, ours) == pytest.approx(0.5 * log(2) - 0.25 * log(2), abs=1e-5)
    assert divergence(full, full) == 0


def test_all_that_is_not_named_by_both_counts_as_one():
    full, ours = logs(t1=0.5, t2=0.2), logs(t1=0.25, t3=0.6)
    assert divergence(full, ours) == pytest.approx(0.5 * log(2) + 0.5 * log(0.5 / 0.75))


def test_it_is_never_more_than_the_divergence_of_all():
    full, ours = logs(t1=0.4, t2=0.3, t3=0.2, t4=0.1), logs(t1=0.1, t2=0.2, t3=0.3, t4=0.4)
    few = {1: full[1], 2: full[2]}, {1: ours[1], 4: ours[4]}
    assert 0 < divergence(*few) < divergence(full, ours)


def test_means_over_the_answer():
    full = [logs(t1=0.8, t2=0.1), logs(t1=0.1, t2=0.8)]
    ours = [logs(t1=0.8, t2=0.1), logs(t1=0.6, t2=0.3)]
    found = forced(ours, full, [1, 2])
    assert found.nll == pytest.approx(-(log(0.8) + log(0.3)) / 2)
    assert found.agreement == 0.5
    assert found.kl == pytest.approx(divergence(full[1], ours[1]) / 2)
    assert forced(full, full, [1, 2]).agreement == 1

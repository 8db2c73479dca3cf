"""Both sides are asked for the same: as many tokens kept, by settings that exist."""

import pytest

from evals.beside.pairs import PAIRS, SAME, WINDOW, cells, kept, matched_beta, ratio
from kvserve.policy.request import parse
from policies.pyramidkv import PyramidKV
from policies.streaming import Streaming

BUDGETS = (0.5, 0.25, 0.125)
HELD = range(300, 700, 7)


@pytest.mark.parametrize("budget", BUDGETS)
def test_kept_is_what_kvserve_keeps(budget):
    assert [kept(budget, held) for held in HELD] == [Streaming(budget=budget).target(held) for held in HELD]


def test_kvpress_keeps_as_many_at_the_ratio():
    """It keeps int(n * (1 - ratio)), at least one."""
    for held in HELD:
        for keep in range(1, held + 1):
            assert max(1, int(held * (1 - ratio(keep, held)))) == keep


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("layers", [4, 7, 32])
def test_the_matched_beta_makes_pyramids_alike(budget, layers):
    """kvpress' pyramid: from 2 * keep - low down to low = keep / beta, if no layer gets more than is there."""
    for held in HELD:
        keep = kept(budget, held)
        low = keep / matched_beta(keep)
        high = 2 * keep - low
        assert low >= WINDOW and high <= held - WINDOW  # else kvpress falls back or clips
        theirs = [round(high - layer * (high - low) / (layers - 1)) for layer in range(layers)]
        ours = PyramidKV(budget=keep, window=WINDOW).shares(keep, layers, held)
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1
        assert abs(sum(ours) - sum(theirs)) <= layers / 2


def test_all_policies_take_their_settings_at_the_smallest_budget():
    for pair in PAIRS:
        taken = parse({**pair.ours, "budget": kept(min(BUDGETS), min(HELD) + 160)}).wire()
        given = {name: value for name, value in pair.ours.items() if name != "name"}
        assert taken.pop("of", {}).items() >= given.pop("of", {}).items()
        assert taken.items() >= given.items()


def test_each_pair_is_a_row_of_its_own():
    assert len({pair.label for pair in PAIRS}) == len(PAIRS)
    assert all(pair.why for pair in PAIRS if pair.kind != SAME)


def test_what_is_asked_once():
    everywhere = [pair for pair in PAIRS if not pair.once]
    assert {pair.policy for pair in everywhere} == {pair.policy for pair in PAIRS}  # no policy is left out
    assert cells(False, BUDGETS) == [(pair, at) for pair in everywhere for at in BUDGETS]
    once = [cell for cell in cells(True, BUDGETS) if cell[0].once]
    assert [at for _, at in once] == [0.25] * (len(PAIRS) - len(everywhere))

"""The statistics of claims on attention, queries and keys made by hand."""

import pytest
import torch

from evals.claims import allocation, concentration, persistence, series
from evals.claims.concentration import Centre
from evals.claims.passes import Pass


def attention(rows):
    """(1, 1, n, n) from the lower triangle's rows."""
    made = torch.zeros(len(rows), len(rows))
    for number, row in enumerate(rows):
        made[number, : len(row)] = torch.tensor(row)
    return made[None, None]


EIGHT = attention(
    [
        [1.0],
        [0.9, 0.1],
        [0.1, 0.8, 0.1],
        [0.1, 0.8, 0.05, 0.05],
        [0.0, 0.7, 0.0, 0.1, 0.2],
        [0.0, 0.7, 0.0, 0.1, 0.1, 0.1],
        [0.0, 0.7, 0.0, 0.1, 0.1, 0.1, 0.0],
        [0.0, 0.7, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0],
    ]
)
"""Of the first four tokens, 0 and 1 are above average in the first half, 1 alone in the second."""


def test_pivotal_is_above_average():
    first, second = persistence.pivotal(EIGHT[..., :4, :4], 0, 4), persistence.pivotal(EIGHT, 4, 4)
    assert first[0, 0].tolist() == [False, True, False, False]  # 0: (1 + 1.8 + .3 + .4) / 4 < 1
    assert second[0, 0].tolist() == [False, True, False, False]
    assert persistence.pivotal(EIGHT[..., :4, :4], 0, 4, ever=True)[0, 0].tolist() == [True, True, False, False]


def test_uniform_attention_has_no_pivots():
    rows = attention([[1 / (n + 1)] * (n + 1) for n in range(16)])
    assert not persistence.pivotal(rows * 0.999, 8, 8).any()


def test_persistence_beside_its_controls():
    found = persistence.shares(EIGHT)
    assert [x.item() for x in found] == [1.0, 0.25, 0.0, 0.25]  # token 1 again; by chance 1 of 4; the newest is 3
    ever = persistence.shares(EIGHT, ever=True)
    assert (ever.persists.item(), ever.size.item()) == (1.0, 0.5)


def test_persistence_of_attention_that_moves_on():
    moved = EIGHT.clone()
    moved[..., 4:, 1], moved[..., 4:, 2] = 0.0, 0.7
    assert persistence.shares(moved).persists.item() == 0.0


def text(queries, keys):
    """A Pass of one layer and head from (n, F) complex numbers."""
    return Pass(torch.zeros(1, 1, 1, 1), queries[None, :, None], keys[None, :, None], 0)


def test_concentration():
    angles = torch.arange(4) * torch.pi / 2
    queries = torch.stack([torch.full((4,), 3.0 + 0j), torch.polar(torch.ones(4), angles)], 1)
    found = concentration.centre([text(queries[:2], queries[:2]), text(queries[2:], queries[2:])])
    assert found.modulus[0, 0].tolist() == pytest.approx([3.0, 1.0])
    assert found.strongest.item() == pytest.approx(1.0)  # the band of length 3 always points the same way
    assert found.overall.item() == pytest.approx(0.75)  # 3 of 3 + 1: the other points everywhere
    assert concentration.alike(found, found).item() == pytest.approx(1.0)
    assert concentration.alike(found, found._replace(mean=-found.mean)).item() == pytest.approx(-1.0)


def test_the_series_by_hand():
    """F = 2, three keys, offsets 1 to 16; worked out apart from this code."""
    centre = Centre(torch.tensor([[[1 + 0j, 0.5 + 0.5j]]]), torch.tensor([[[1.25, 1.0]]]))
    keys = torch.zeros(1, 8, 1, 2, dtype=torch.complex64)
    keys[0, [0, 3, 7], 0] = torch.tensor([[1, 0.2], [1j, 1 + 1j], [0.5, -1]])
    offsets = torch.tensor([1, 2, 4, 8, 16])
    trig, norm = series.scores(centre, keys, torch.tensor([1.0, 0.1]), 10, offsets)
    assert trig[0, 0, [0, 3, 7]].tolist() == pytest.approx([0.370526, 0.276386, 0.203383], abs=1e-5)
    assert norm[0, 0, [0, 3, 7]].tolist() == pytest.approx([0.308579, 0.664214, 0.417893], abs=1e-5)


def test_the_curve_of_queries_that_never_turn_is_what_is_measured():
    frequencies, distances = torch.tensor([0.3, 0.01]), torch.tensor([1, 2, 5, 9])
    queries, keys = (torch.tensor([[1 + 1j, 2j]]).repeat(32, 1), torch.tensor([[2 + 0j, 1 - 1j]]).repeat(32, 1))
    one = text(queries, keys)
    predicted, measured = series.curves(concentration.centre([one]), one, frequencies, distances)
    torch.testing.assert_close(predicted, measured)
    assert measured.std() > 0.1


def test_correlations():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert series.correlation(x, -2 * x).item() == pytest.approx(-1.0)
    assert series.correlation(x, torch.ones(4)).item() == 0.0
    assert series.rank_correlation(x, x.exp()).item() == pytest.approx(1.0)
    assert series.rank_correlation(x, torch.tensor([2.0, 1.0, 4.0, 3.0])).item() == pytest.approx(0.6)


def test_prefix_budgets_of_two_layers():
    scores = torch.tensor([[5, 2, 1, 1, 0.5, 0.5], [2, 2, 2, 2, 1, 1]])
    assert (allocation.prefix_shares(scores, 0.5) * 6).tolist() == [2, 4]
    assert allocation.retained(scores, 0.5).tolist() == pytest.approx([0.8, 0.6])
    assert allocation.gini(torch.ones(5)).item() == 0
    assert allocation.gini(torch.tensor([0.0, 0, 0, 1])).item() == 0.75
    assert (allocation.gini(scores)[0] > allocation.gini(scores)[1]).item()


def test_importance_is_summed_over_queries():
    assert allocation.importance(EIGHT)[0, :2].tolist() == pytest.approx([2.1, 4.5])

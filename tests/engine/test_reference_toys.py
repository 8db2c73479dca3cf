"""The policies of the reference on toys worked by hand."""

import pytest
import torch

from tests.engine.reference import evidence, fixed, trigonometry, votes


def test_elastic_toy():
    kept = fixed.elected([9, 1, 7, 3, 8, 2], keep=4, sinks=1)
    groups = fixed.buckets(kept, 6, sinks=1)
    assert kept == [0, 2, 4, 5]
    assert groups == {0: [0], 2: [2, 1, 3], 4: [4], 5: [5]}
    assert fixed.blended(torch.arange(1.0, 7.0)[:, None], groups).flatten().tolist() == [1, 3, 5, 6]


def test_elastic_deletes_at_one_slot():
    assert fixed.fixed_slot(30, -25) == 5
    assert fixed.fixed_slot(20, -25) == 10
    assert fixed.fixed_slot(30, 7) == 7
    assert fixed.deleted([0, 1, 2, 3, 4, 5, 6], 3, 2) == [0, 1, 2, 5, 6]


@pytest.mark.parametrize(
    ("total", "counts"), [(3, [1, 2]), (5, [2, 3]), (6, [2, 4]), (7, [3, 4]), (9, [4, 5]), (12, [6, 6])]
)
def test_prefixkv_toy(total, counts):
    scores = [[5, 2, 1, 1, 0.5, 0.5], [2, 2, 2, 2, 1, 1]]
    assert fixed.prefix_budgets(scores, total, least=0) == counts


def test_prefixkv_sums_exactly_with_ties_and_floors():
    assert sum(fixed.prefix_budgets([[1.0] * 8] * 3, 13, least=2)) == 13
    assert fixed.prefix_budgets([[1.0] * 8, [100.0] + [1e-9] * 7], 5, least=2) == [3, 2]


def test_triattention_toy():
    mean, moduli = torch.tensor([1, 0.5 + 0.5j], dtype=torch.complex128), torch.tensor([1.25, 1], dtype=torch.float64)
    keys = torch.tensor([[1, 0.2], [1j, 1 + 1j], [0.5, -1]], dtype=torch.complex128)
    omega = torch.tensor([1, 0.1], dtype=torch.float64)
    found = trigonometry.trig_scores(mean, moduli, keys, [0, 3, 7], 10, omega, (1, 2, 4, 8, 16))
    assert found.tolist() == pytest.approx([0.679105, 0.940599, 0.621276], abs=1e-6)


def test_rkv_spares_the_newest_copy():
    """Three copies and a stranger: each copy forgives the newest other one, so the oldest is punished most."""
    found = evidence.redundancy(torch.eye(4, dtype=torch.float64)[[0, 0, 0, 1]], 0.5)
    assert torch.allclose(found, torch.softmax(torch.tensor([0.5, 0.25, 0, 0], dtype=torch.float64), dim=0))


def test_expected_attention_of_one_query_is_its_softmax():
    """No spread and no future: E[exp(q k)] is exp(q k)."""
    query, keys = torch.tensor([[1.0, 2.0, 0.5, -1.0]]).double(), torch.randn(5, 4).double()
    found = evidence.expectation(query.repeat(3, 1), torch.eye(4).double(), keys)
    assert torch.allclose(found, torch.softmax(keys @ query[0] / 2, dim=0))


def test_average_rotation_is_a_rotation():
    frequencies = torch.rand(32).double()
    turn = evidence.average_rotation(7, 1, frequencies)
    x = torch.randn(64).double()
    turned = trigonometry.turned(x[None], [7], frequencies)[0]
    assert torch.allclose(turn @ x, torch.cat([turned.real, turned.imag]))


def test_low_votes_toy():
    rows = [
        [0.40, 0.05, 0.10, 0.20, 0.05, 0.20],
        [0.45, 0.05, 0.05, 0.05, 0.20, 0.20],
        [0.30, 0.05, 0.25, 0.05, 0.05, 0.30],
    ]
    low = [votes.is_low(dict(enumerate(row))) for row in rows]
    assert [sum(b[i] for b in low) for i in range(6)] == [0, 3, 2, 2, 2, 0]
    assert not any(votes.is_low(dict.fromkeys(range(6), 1 / 6)).values())

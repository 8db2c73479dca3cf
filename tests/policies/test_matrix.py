"""Every installed policy through the same invariants (U1 to U5, U9 of the common list; U6 to U8 need an engine)."""

import pytest
import torch

from kvserve import registry, request
from kvserve.policy import LayerView, Moment

H, G, D, N = 2, 2, 16, 700
POLICIES = [n for n, p in registry.installed().items() if p.compresses]
BUDGETS = [64, 300, 0.1, 0.5]


def world(seed=0, slots=N):
    """A layer with random keys, values and last queries."""
    g = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(H, slots, D, generator=g), torch.randn(H, slots, D, generator=g)
    queries = torch.randn(512, H * G, D, generator=g)
    return keys, values, queries


def view(keys, values, queries, positions=None, window=0):
    slots = keys.shape[1]
    at = torch.arange(slots - 512, slots)
    keep = at >= max(0, slots - window)
    return LayerView(
        layer=1,
        num_layers=4,
        logical=slots,
        since=0,
        positions=torch.arange(slots).expand(H, -1) if positions is None else positions,
        load=lambda which: keys if which == "keys" else values,
        scale=D**-0.5,
        queries=queries[keep] if window else None,
        query_positions=at[keep] if window else None,
    )


def cases():
    return [pytest.param(request.parse({"name": n, "budget": b}), id=f"{n}:{b}") for n in POLICIES for b in BUDGETS]


@pytest.mark.parametrize("policy", cases())
def test_selection_is_well_formed(policy):
    """U2 exact count, U3 unique ascending slots in range, U4 sinks and recent stay, inputs untouched."""
    keys, values, queries = world()
    copies = [x.clone() for x in (keys, values, queries)]
    keep = policy.due(Moment(N, N, "prefilled"))
    stay = policy.select(view(keys, values, queries, window=policy.query_window), keep)
    assert stay.shape == (H, keep)
    assert stay.dtype == torch.int64
    assert (stay.diff(dim=1) > 0).all()
    assert stay.min() >= 0
    assert stay.max() < N
    for row in stay.tolist():
        assert set(range(policy.sinks)) <= set(row)
        recent = getattr(policy, "window", policy.recent)
        assert set(range(N - recent, N)) <= set(row)
    assert all(torch.equal(a, b) for a, b in zip(copies, (keys, values, queries), strict=True))


@pytest.mark.parametrize("policy", cases())
def test_target_rounds_up_and_is_never_exceeded(policy):
    for logical in (1, 7, 65, 127, 700, 4000):
        keep = policy.due(Moment(logical, logical, "prefilled"))
        if keep is None:
            assert logical <= policy.target(logical)
        else:
            assert keep == policy.target(logical) < logical
            assert isinstance(policy.budget, int) or keep >= policy.budget * logical - 1e-6


@pytest.mark.parametrize("name", POLICIES)
def test_enough_budget_never_acts(name):
    """U1."""
    for budget in (N, 1.0):
        policy = request.parse({"name": name, "budget": budget})
        for stage in ("prefill", "prefilled", "decode"):
            assert policy.due(Moment(N, N, stage)) is None


@pytest.mark.parametrize("name", POLICIES)
def test_equal_inputs_equal_choice(name):
    """U9: the same view gives the same slots, also when all scores tie."""
    policy = request.parse({"name": name, "budget": 100})
    flat = [torch.ones_like(x) for x in world()]
    for made in (world(), flat):
        one, two = (policy.select(view(*made, window=policy.query_window), 100) for _ in range(2))
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", POLICIES)
def test_heads_are_independent(name):
    """What one KV head keeps does not depend on another one's content, or all keep the same."""
    policy = request.parse({"name": name, "budget": 100})
    keys, values, queries = world()
    before = policy.select(view(keys, values, queries, window=policy.query_window), 100)
    keys = keys.clone()
    keys[1] = torch.randn(N, D)
    after = policy.select(view(keys, values, queries, window=policy.query_window), 100)
    assert torch.equal(before[0], after[0] if policy.per_head else before[1])

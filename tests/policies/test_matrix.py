"""Every installed policy through the same invariants (U1 to U5, U9 of the common list; U6 to U8 need an engine)."""

import pytest
import torch

from kvserve.evidence.mass import column_sums
from kvserve.policy import LayerView, Merged, Moment, Moments, Rope, registry, request
from kvserve.policy.softmax import Softmax

H, G, D, N, PROMPT = 2, 2, 16, 700, 100
POLICIES = [n for n, p in registry.installed().items() if p.compresses and p.budgeted]
BUDGETS = [64, 300, 0.1, 0.5]


def world(seed=0, slots=N):
    """A layer with random keys, values and last queries."""
    g = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(H, slots, D, generator=g), torch.randn(H, slots, D, generator=g)
    queries = torch.randn(512, H * G, D, generator=g)
    return keys, values, queries


def view(policy, keys, values, queries):
    """The layer with the evidence that the policy reads, its sums taken over all queries there are."""
    slots = keys.shape[1]
    at = torch.arange(slots - 512, slots)
    last = slice(512 - policy.query_window, None)
    evidence = {name: EVIDENCE[name](keys, queries) for name in policy.reads if name in EVIDENCE}
    return LayerView(
        layer=1,
        num_layers=4,
        logical=slots,
        since=0,
        positions=torch.arange(slots).expand(H, -1),
        load=lambda which: keys if which == "keys" else values,
        softmax=Softmax(D**-0.5),
        queries=queries[last] if policy.query_window else None,
        query_positions=at[last] if policy.query_window else None,
        prompt=PROMPT,
        rope=Rope(1e4 ** (-torch.arange(0, D, 2).double() / D)),
        **evidence,
    )


def mass(keys, queries):
    return column_sums(queries, keys, Softmax(D**-0.5), keys.shape[1] - 512).transpose(1, 2)


def moments(keys, queries):
    return Moments(len(queries), queries.sum(0), torch.einsum("whd,whe->hde", queries, queries))


def calibration(keys, queries):
    bands = torch.complex(queries[..., : D // 2], queries[..., D // 2 :])
    budgets = torch.tensor([0.1, 0.5, 0.9])
    return {
        "q_mean": bands.mean(0),
        "q_abs": bands.abs().mean(0),
        "budgets": budgets,
        "keep_share": budgets * 0.9,
    }


EVIDENCE = {"mass": mass, "moments": moments, "calibration": calibration}


def chosen(policy, made, keep):
    """What one layer keeps, as the engine asks for it."""
    choice = next(iter(policy.choose([view(policy, *made)], [keep])))
    return choice.slots if isinstance(choice, Merged) else choice


def cases():
    return [pytest.param(request.parse({"name": n, "budget": b}), id=f"{n}:{b}") for n in POLICIES for b in BUDGETS]


@pytest.mark.parametrize("policy", cases())
def test_selection_is_well_formed(policy):
    """U2 exact count, U3 unique ascending slots in range, U4 sinks and recent stay, inputs untouched."""
    made = world()
    copies = [x.clone() for x in made]
    keep = policy.due(Moment(N, N, "prefilled", PROMPT))
    assert keep == policy.target(N, PROMPT)
    stay = chosen(policy, made, keep)
    assert stay.shape == (H, keep)
    assert stay.dtype == torch.int64
    assert (stay.diff(dim=1) > 0).all()
    assert stay.min() >= 0
    assert stay.max() < N
    for row in stay.tolist():
        assert set(range(getattr(policy, "sinks", 0))) <= set(row)
        recent = getattr(policy, "window", getattr(policy, "recent", 0))
        assert set(range(N - recent, N)) <= set(row)
    assert all(torch.equal(a, b) for a, b in zip(copies, made, strict=True))


@pytest.mark.parametrize("policy", cases())
def test_target_rounds_up_and_is_never_exceeded(policy):
    for logical in (1, 7, 65, 127, 700, 4000):
        keep = policy.due(Moment(logical, logical, "prefilled", PROMPT))
        target = policy.target(logical, PROMPT)
        if keep is None:
            assert logical <= target
        else:
            assert keep == target < logical
            assert isinstance(policy.budget, int) or keep >= policy.budget * logical - 1e-6


@pytest.mark.parametrize("name", POLICIES)
def test_enough_budget_never_acts(name):
    """U1."""
    for budget in (N, 1.0):
        policy = request.parse({"name": name, "budget": budget})
        for stage in ("prefill", "prefilled", "decode"):
            assert policy.due(Moment(N, N, stage, PROMPT)) is None


@pytest.mark.parametrize("name", POLICIES)
def test_equal_inputs_equal_choice(name):
    """U9: the same view gives the same slots, also when all scores tie."""
    policy = request.parse({"name": name, "budget": 100})
    keep = policy.target(N, PROMPT)
    flat = [torch.ones_like(x) for x in world()]
    for made in (world(), flat):
        one, two = (chosen(policy, made, keep) for _ in range(2))
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", POLICIES)
def test_heads_are_independent(name):
    """What one KV head keeps does not depend on another one's content, or all keep the same."""
    policy = request.parse({"name": name, "budget": 100})
    keep = policy.target(N, PROMPT)
    keys, values, queries = world()
    before = chosen(policy, (keys, values, queries), keep)
    keys = keys.clone()
    keys[1] = torch.randn(N, D)
    after = chosen(policy, (keys, values, queries), keep)
    assert torch.equal(before[0], after[0] if policy.per_head else before[1])

"""Every shape: stock where nothing is evicted, the reference where something is, by whatever neighbours and prefix."""

import pytest
import torch

from tests.engine import harness
from tests.zoo.scores import HORIZON, RULES, worst
from tests.zoo.served import BUDGET, LENGTH, PROMPT, difference, prompts

NEAR = 1e-3
"""Of the spread of all scores: so near to each other two tokens are a tie."""


@pytest.fixture(scope="module")
def binding(zoo):
    """Every policy's answer to a prompt of its own, one without a policy among them, and what was kept."""
    policies = [None, *zoo.policies(budget=BUDGET, slack=16)]
    texts = [harness.tokens(PROMPT, seed=100 + i) for i in range(len(policies))]
    harness.selections(zoo.llm)
    outputs = harness.generate(zoo.llm, texts, policies, LENGTH)
    chosen = harness.selections(zoo.llm)
    mine = [[s for s in chosen if s.req_id.split("-")[0] == o.request_id] for o in outputs]
    return list(zip(texts, policies, outputs, mine, strict=True))


def test_off_is_stock(zoo):
    outputs = harness.generate(zoo.llm, prompts(), [None] * len(prompts()), LENGTH)
    assert [harness.said(o) for o in outputs] == zoo.stock


def test_not_binding_is_stock(zoo):
    policies = zoo.policies(budget=400, slack=16)
    texts = [harness.tokens(PROMPT, seed=i) for i in range(len(policies))]
    expected = [harness.said(o) for o in harness.generate(zoo.llm, texts, [None] * len(texts), LENGTH)]
    outputs = harness.generate(zoo.llm, texts, policies, LENGTH)
    assert [harness.said(o) for o in outputs] == expected
    assert all(harness.outcome(o)["evicted_tokens"] == 0 for o in outputs)


def test_binding_is_reference(zoo, binding):
    """Log-probabilities of every policy, and the tokens that policies with plain scores keep."""
    zoo.needs_exactness()
    reference = zoo.reference()
    turns = reference.turns(PROMPT + LENGTH + HORIZON) if zoo.shape.rotation else {}
    wrong = {}
    for text, policy, output, chosen in binding:
        said, rounds = harness.said(output), zoo.rounds(chosen)
        read = reference.read([*text, *said[0]], rounds)
        name = policy["name"] if policy else "none"
        moved = policy is None or policy["name"] != "elastic-cache"  # which merges: no mask says what it keeps
        if moved and (off := difference(said, read.said(PROMPT, said[0]))) > zoo.shape.tolerance:
            wrong[name] = f"log-probabilities differ by {off:.2g}"
        assert bool(rounds) == (policy is not None), name
        unrotated = {layer: torch.eye(k.shape[-1]).expand(512, -1, -1) for layer, k in read.keys.items()}
        read.turns = unrotated | turns
        ruled = name in RULES and (read.queries or name != "expected-attention")
        if ruled and (gap := worst(name, read, rounds)) > NEAR:
            wrong[f"{name}, scores"] = f"a dropped token beats a kept one by {gap:.2g} spreads"
    assert not wrong


def test_reference_sees_evictions(zoo, binding):
    """Or the comparison with it would say nothing."""
    zoo.needs_exactness()
    reference = zoo.reference()
    for text, policy, output, chosen in binding:
        if policy is not None and policy["name"] == "streaming":
            said = harness.said(output)
            assert zoo.rounds(chosen)
            assert difference(said, reference.read([*text, *said[0]]).said(PROMPT, said[0])) > 0.01


def test_mixed_is_alone(zoo, binding):
    zoo.needs_exactness()
    for text, policy, output, _ in binding:
        if policy is None or policy["name"] in ("snapkv", "h2o", "keydiff"):
            [alone] = harness.generate(zoo.llm, [text], [policy], LENGTH)
            tokens, logps = harness.said(alone)
            assert tokens == harness.said(output)[0]
            assert difference(harness.said(output), torch.tensor(logps)) < zoo.shape.tolerance


@pytest.mark.parametrize(
    "policy",
    [
        {"name": "snapkv", "budget": 400},
        {"name": "snapkv", "budget": BUDGET},
        {"name": "tova", "budget": BUDGET, "slack": 16},
        {"name": "keydiff", "budget": BUDGET, "at": 100},
    ],
    ids=lambda p: f"{p['name']}-{p.get('at', p['budget'])}",
)
def test_warm_prefix_is_cold_prefix(zoo, policy):
    prefix = harness.tokens(PROMPT - 30, seed=3)
    prompt = prefix + harness.tokens(60, seed=4)
    [cold] = harness.generate(zoo.llm, [prompt], [policy], LENGTH)
    harness.generate(zoo.llm, [prefix], [None], 4)
    for _ in range(2):
        [warm] = harness.generate(zoo.llm, [prompt], [policy], LENGTH, warm=True)
        assert harness.said(warm)[0] == harness.said(cold)[0]
        assert difference(harness.said(warm), torch.tensor(harness.said(cold)[1])) < zoo.shape.tolerance
    assert warm.num_cached_tokens > 0

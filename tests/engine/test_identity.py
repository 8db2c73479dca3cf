"""Where nothing is evicted, the output is stock vLLM's, bit for bit."""

import pytest

from tests.engine import harness

LENGTHS = [33, 120, 300, 500, 700, 1100]
PROMPTS = [harness.tokens(n, seed=n) for n in LENGTHS]
MIXED = ["streaming:0.25", "snapkv:0.25", "scissorhands:0.25", "knorm:0.5", "random:64", "scissorhands:100"]
OTHERS = [harness.tokens(n, seed=-n) for n in LENGTHS]
INTERLEAVED = [p for pair in zip(PROMPTS, OTHERS, strict=True) for p in pair]


@pytest.fixture(scope="module")
def stock():
    engine = harness.start(kv=False)
    batch = [harness.said(o) for o in harness.generate(engine, PROMPTS, [None] * len(PROMPTS))]
    alone = [harness.said(harness.generate(engine, [p], [None])[0]) for p in PROMPTS[:3]]
    twelve = [harness.said(o) for o in harness.generate(engine, INTERLEAVED, [None] * 12)]
    harness.stop(engine)
    return batch, alone, twelve


@pytest.fixture(scope="module", params=[1, 4], ids=["1group", "4groups"])
def llm(request, stock):
    engine = harness.start(blocks=1024 * request.param, options={"groups": request.param})
    yield engine
    harness.stop(engine)


def test_no_policy_is_stock(llm, stock):
    batch, alone, _ = stock
    assert [harness.said(o) for o in harness.generate(llm, PROMPTS, [None] * len(PROMPTS))] == batch
    assert [harness.said(harness.generate(llm, [p], [None])[0]) for p in PROMPTS[:3]] == alone


def test_full_is_stock(llm, stock):
    outputs = harness.generate(llm, PROMPTS, ["full"] * len(PROMPTS))
    assert [harness.said(o) for o in outputs] == stock[0]
    assert all(o.kv_transfer_params is None for o in outputs)


@pytest.mark.parametrize("budget", [2000, 1.0], ids=["tokens", "share"])
def test_budget_at_least_the_length_is_stock(llm, stock, budget):
    """U1: every policy, with evidence capture and rounds running."""
    servable = harness.policies(llm)
    for some in (servable[: len(PROMPTS)], servable[-len(PROMPTS) :]):
        policies = [{**chosen, "budget": budget, "slack": 16} for chosen in some]
        outputs = harness.generate(llm, PROMPTS, policies)
        assert [harness.said(o) for o in outputs] == stock[0]
        assert all(harness.outcome(o)["evicted_tokens"] == 0 for o in outputs)
        assert [harness.outcome(o)["policy"] for o in outputs] == [chosen["name"] for chosen in some]


def test_stock_requests_beside_compressed_ones(llm, stock):
    """The neighbours in a batch do not matter (U6), whichever side one is on."""
    policies = [x for policy in MIXED for x in (None, policy)]
    outputs = harness.generate(llm, INTERLEAVED, policies)
    assert [harness.said(o) for o in outputs[::2]] == stock[2][::2]
    together = [harness.said(o)[0] for o in outputs[1::2]]
    alone = [harness.said(harness.generate(llm, [p], [q])[0])[0] for p, q in zip(INTERLEAVED[1::2], MIXED, strict=True)]
    assert together == alone
    assert any(harness.outcome(o)["evicted_tokens"] > 0 for o in outputs[1::2])


def test_same_request_twice(llm):
    """Determinism: alone, and among others that change its chunk boundaries."""
    prompt, policy = harness.tokens(900, seed=3), "scissorhands:128"
    first = harness.said(harness.generate(llm, [prompt], [policy])[0])[0]
    again = harness.said(harness.generate(llm, [prompt], [policy])[0])[0]
    others = [harness.tokens(333, seed=4), prompt, harness.tokens(77, seed=5)]
    among = harness.said(harness.generate(llm, others, [None, policy, "random:40"])[1])[0]
    assert first == again == among

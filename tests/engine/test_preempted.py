"""A request that is preempted says what it would have said: its compactions are repeated where they were."""

import pytest

from tests.engine import harness
from tests.engine.test_pool import add, drain

PROMPT = harness.tokens(300, seed=21)
LENGTH = 200
POLICIES = [
    {"name": "streaming", "budget": 100, "slack": 32},
    {"name": "scissorhands", "budget": 120, "slack": 32},
    {"name": "h2o", "budget": 100, "slack": 64},
    {"name": "elastic-cache", "budget": 100, "slack": 32},
    {"name": "tova", "budget": 0.25, "slack": 32},
    {"name": "rkv", "budget": 100, "slack": 64},
    {"name": "expected-attention", "budget": 100, "slack": 64},
    {"name": "snapkv", "budget": 0.3, "at": 170},
    {"name": "h2o", "budget": 90, "every": 3, "at": 170},
    {"name": "streaming", "budget": 100, "slack": 32, "prefill": "chunks"},
    {"name": "random", "budget": 64, "slack": 16},
]


@pytest.fixture(
    scope="module",
    params=[(1, False), pytest.param((4, False), marks=pytest.mark.slow), (4, True)],
    ids=["sync", "4groups", "4groups-async"],
)
def llm(request):
    groups, asynchronous = request.param
    with harness.scheduling(asynchronous):
        engine = harness.start(blocks=512 * groups, max_num_batched_tokens=160, options={"groups": groups})
    yield engine
    harness.stop(engine)


def run(llm, policy, preempt_after=(), together=()):
    """Tokens, `usage.kv_cache` and what was kept at each round, of a request that is preempted after these steps."""
    engine = llm.llm_engine
    assert llm.reset_prefix_cache()
    harness.selections(llm)
    add(llm, "it", PROMPT, policy, LENGTH)
    for i, other in enumerate(together):
        add(llm, f"other{i}", harness.tokens(200, seed=i), other, LENGTH)
    step, found = 0, None
    while engine.has_unfinished_requests():
        for output in engine.step():
            found = output if output.finished and output.request_id == "it" else found
        step += 1
        if step in preempt_after:
            engine.reset_prefix_cache(reset_running_requests=True)
        harness.scheduler(llm).check_integrity()
    kept = {}
    for each in harness.selections(llm):
        if "it" in each.req_id:
            again = kept.setdefault((each.logical, each.layer), each.positions.tolist())
            assert again == each.positions.tolist(), f"another choice the second time, at {each.logical}"
    drain(llm)
    return harness.said(found), harness.outcome(found), kept


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p['name']}-{p.get('at', p.get('prefill', ''))}")
def test_same_as_without(llm, policy):
    facts = harness.scheduler(llm).kv.facts
    policy = {**policy, "granularity": "group"} if policy["name"] == "scissorhands" and facts.groups > 1 else policy
    expected, outcome, kept = run(llm, policy)
    assert outcome["compactions"] >= 1
    totals = harness.scheduler(llm).kv.totals.of(policy["name"])
    before = totals.evicted, totals.compactions
    said, usage, again = run(llm, policy, preempt_after=(1, 3, 40, 41, 120))
    assert said[0] == expected[0]
    assert max(abs(a - b) for a, b in zip(said[1], expected[1], strict=True)) < 1e-3
    assert again == kept
    assert usage == outcome, "what was done again is counted once"
    assert totals.compactions - before[1] == outcome["compactions"]


def test_with_neighbours(llm):
    """Which chunk of the step's tokens it gets depends on the others; what it says does not."""
    policy = {"name": "streaming", "budget": 100, "slack": 32}
    expected, _, _ = run(llm, policy)
    others = [None, {"name": "knorm", "budget": 80}, policy]
    said, _, _ = run(llm, policy, preempt_after=(5, 60), together=others)
    assert said[0] == expected[0]

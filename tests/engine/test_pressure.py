"""`when: pressure`: a request keeps all until the engine would preempt someone, and then makes room."""

import pytest

from tests.engine import harness
from tests.engine.fuzz import Traffic
from tests.engine.test_pool import count_preemptions, drain

PROMPTS = [harness.tokens(300, seed=i) for i in range(8)]
POLICY = {"name": "streaming", "budget": 150, "when": "pressure"}


@pytest.fixture(scope="module", params=[1, 2], ids=["1group", "2groups"])
def groups(request):
    return request.param


@pytest.fixture(scope="module")
def ample(groups):
    engine = harness.start(blocks=512 * groups, options={"groups": groups})
    yield engine
    harness.stop(engine)


@pytest.fixture(scope="module")
def tight(groups):
    engine = harness.start(blocks=90 * groups + 1, max_model_len=1024, options={"groups": groups})
    yield engine
    harness.stop(engine)


def totals(llm):
    return harness.scheduler(llm).kv.totals


def test_without_pressure_nothing_is_dropped(ample):
    stock = [harness.said(o) for o in harness.generate(ample, PROMPTS, [None] * 8, 150)]
    outputs = harness.generate(ample, PROMPTS, [POLICY] * 8, 150)
    assert [harness.said(o) for o in outputs] == stock
    assert all(harness.outcome(o)["compactions"] == 0 for o in outputs)
    assert totals(ample).preemptions_avoided == 0


def test_under_pressure_no_one_is_preempted(tight):
    """8 prompts of 10 blocks fill the pool; 150 more tokens each would need 40 blocks more."""
    preempted = count_preemptions(tight)
    outputs = harness.generate(tight, PROMPTS, [POLICY] * 4 + [None] * 4, 150)
    assert all(len(o.outputs[0].token_ids) == 150 for o in outputs)
    records = [harness.outcome(o) for o in outputs[:4]]
    assert any(r["compactions"] for r in records)
    assert preempted["count"] == 0
    assert totals(tight).preemptions_avoided > 0
    policy = totals(tight).policies["streaming"]
    assert policy.pressure_compactions == policy.compactions == sum(r["compactions"] for r in records)


def test_without_such_requests_they_are(tight):
    preempted = count_preemptions(tight)
    harness.generate(tight, PROMPTS, [None] * 8, 150)
    assert preempted["count"] > 0


def test_traffic(tight):
    """The fuzz of test_fuzz with half of the policies under pressure."""
    before = harness.free_blocks(tight)
    traffic = Traffic(tight, seed=9, prefix="pressure", pressure=0.5)
    traffic.run(80)
    assert set(traffic.answers) | traffic.aborted == set(traffic.sent)
    drain(tight)
    assert harness.free_blocks(tight) == before
    assert sum(t.pressure_compactions for t in totals(tight).policies.values()) > 3

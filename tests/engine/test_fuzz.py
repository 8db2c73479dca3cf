"""500 requests and more on a tiny pool: no step at which scheduler, worker and pool disagree, no leak."""

import pytest

from tests.engine import harness, taught
from tests.engine.fuzz import Traffic
from tests.engine.test_pool import count_preemptions, drain

POOL = 59


KINDS = {1: ["summary"] * 4, 2: ["summary", "full"] * 2, 4: ["summary", "full", "summary", "summary"]}


@pytest.fixture(scope="module", params=[(1, False), (4, False), (2, True)], ids=["1group", "4groups", "2groups-async"])
def llm(request, tmp_path_factory):
    groups, asynchronous = request.param
    model = taught.model(tmp_path_factory.mktemp("fuzz") / "model", KINDS[groups])
    with harness.scheduling(asynchronous):
        engine = harness.start(
            model=model, blocks=POOL * groups + 1, max_model_len=1024, max_num_batched_tokens=256,
            options={"groups": groups},
        )  # fmt: skip
    assert type(harness.scheduler(engine)).__name__ == ("KVAsyncScheduler" if asynchronous else "KVSyncScheduler")
    yield engine
    harness.stop(engine)


def test_a_little_traffic(llm):
    """What runs on the V2 runner in every `make test`, see test_v2: its interpreted kernels take a minute for it."""
    before = harness.free_blocks(llm)
    traffic = Traffic(llm, 7, sharing=0.5)
    traffic.run(25)
    assert set(traffic.answers) | traffic.aborted == set(traffic.sent)
    drain(llm)
    assert harness.free_blocks(llm) == before
    assert traffic.seen["rows"] > 200
    assert sum(t.compactions for t in harness.scheduler(llm).kv.totals.policies.values()) > 20


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_traffic(llm, seed):
    before = harness.free_blocks(llm)
    preempted = count_preemptions(llm)
    traffic = Traffic(llm, seed)
    traffic.run(100)
    ended = set(traffic.answers) | traffic.aborted
    assert ended == set(traffic.sent)
    for req_id, tokens in traffic.answers.items():
        assert len(tokens) == traffic.sent[req_id][2]
    drain(llm)
    assert harness.free_blocks(llm) == before
    assert not harness.runner(llm).kv.requests
    assert not len(harness.runner(llm).kv.queries)
    totals = harness.scheduler(llm).kv.totals.policies
    assert sum(t.compactions for t in totals.values()) > 100
    assert traffic.seen["rows"] > 500
    assert preempted["count"] > 0
    assert totals["ksa"].compactions > 10
    assert not len(harness.runner(llm).kv.observers[-1])
    _stock_requests_say_the_same(llm, traffic)


def _stock_requests_say_the_same(llm, traffic):
    """What a request without a policy said in the crowd, it says alone with an empty prefix cache."""
    stock = [r for r, (_, policy, _) in traffic.sent.items() if policy is None and r in traffic.answers][:8]
    assert len(stock) == 8
    for req_id in stock:
        prompt, _, length = traffic.sent[req_id]
        [alone] = harness.generate(llm, [prompt], [None], length)
        assert harness.said(alone)[0] == traffic.answers[req_id]

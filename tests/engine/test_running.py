"""The list of running requests against what client, worker and pool say of them."""

import json
from itertools import count
from math import ceil

import pytest

from kvserve.stats import SHOWN, short_id
from tests.engine import harness

POOL = 511
POLICIES = ["snapkv:0.25", "scissorhands:0.5", None, "streaming:64", {"name": "random", "budget": 0.3, "decode": False}]


@pytest.fixture(scope="module")
def llm():
    engine = harness.start(blocks=POOL + 1, max_num_seqs=SHOWN + 8, max_num_batched_tokens=2048)
    yield engine
    harness.stop(engine)


@pytest.fixture(autouse=True)
def _leaves_nothing(llm):
    yield
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    snapshot(llm)
    assert harness.scheduler(llm).kv.totals.running == []


CLOCK = count(1)


def snapshot(llm):
    """Each call is a second after the one before, so that none is left out for coming too soon."""
    text = harness.scheduler(llm).kv.snapshot(next(CLOCK))
    return text and json.loads(text)


def add(llm, name, prompt, policy, generate):
    llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, harness.params(policy, generate, logprobs=None))


def test_every_step_equals_an_independent_count(llm):
    """Seen: prompt and answer as the client has them. Kept: by the worker. Bytes: by the pool."""
    prompts = [harness.tokens(200 + 37 * i, seed=i) for i in range(len(POLICIES))]
    for i, (prompt, policy) in enumerate(zip(prompts, POLICIES, strict=True)):
        add(llm, str(i), prompt, policy, 300)
    said, shrunk = {}, 0
    while True:
        for output in llm.llm_engine.step():
            said[output.request_id] = 0 if output.finished else len(output.outputs[0].token_ids)
        if not any(said.values()):
            break
        found = snapshot(llm)
        assert found is not None, "a request that grows is news"
        seen = {str(i): len(prompts[i]) + said[str(i)] - 1 for i in range(len(prompts)) if said[str(i)]}
        assert [(r["logical_tokens"], r["stage"]) for r in found["running"]] == [(n, "decode") for n in seen.values()]
        block = found["pool_bytes"] / POOL
        assert found["resident_bytes"] == sum(r["resident_bytes"] for r in found["running"])
        assert found["resident_bytes"] == (POOL - harness.free_blocks(llm)) * block
        assert found["full_bytes"] == sum(ceil(n / harness.BLOCK) * block for n in seen.values())
        assert [r["kept_tokens"] for r in found["running"]] == worker_kept(llm, seen)
        shrunk += sum(r["kept_tokens"] < n for r, n in zip(found["running"], seen.values(), strict=True))
    assert shrunk > 500


def worker_kept(llm, seen):
    """Tokens that the worker's caches hold; its ids are the engine's, which begin with ours."""
    held = {req_id.partition("-")[0]: h for req_id, h in harness.runner(llm).kv.requests.items()}
    return [n - (held[name].offset.get(0, 0) if name in held else 0) for name, n in seen.items()]


def test_policies_and_budgets_are_those_asked_for(llm):
    for i, policy in enumerate(POLICIES):
        add(llm, str(i), harness.tokens(100, seed=i), policy, 20)
    llm.llm_engine.step()
    running = snapshot(llm)["running"]
    assert [(r["policy"], r["budget"]) for r in running] == [
        ("snapkv", 0.25),
        ("scissorhands", 0.5),
        ("full", None),
        ("streaming", 64),
        ("random", 0.3),
    ]
    assert len({r["id"] for r in running}) == len(running)


def test_the_list_is_bounded_and_the_counts_are_not(llm):
    for i in range(SHOWN + 12):
        add(llm, str(i), harness.tokens(20, seed=i), "streaming:32", 4)
    llm.llm_engine.step()
    found = snapshot(llm)
    assert len(found["running"]) == SHOWN
    assert (found["requests_running"], found["requests_waiting"]) == (SHOWN + 8, 4)
    held = (POOL - harness.free_blocks(llm)) * found["pool_bytes"] / POOL
    assert found["resident_bytes"] == held > sum(r["resident_bytes"] for r in found["running"])


def test_a_prompt_in_chunks_is_in_its_prefill(llm):
    add(llm, "long", harness.tokens(3000, seed="long"), None, 2)
    stages = []
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        stages += [(r["stage"], r["logical_tokens"]) for r in snapshot(llm)["running"]]
    assert stages == [("prefill", 2048), ("decode", 3000)]


def test_short_ids():
    assert short_id("chatcmpl-0123456789abcdef-1a2b3c4d") == "1a2b3c4d"
    assert short_id("2_cmpl-0123456789abcdef-0-1a2b3c4d") == "2_1a2b3c4d"
    assert short_id("mine_7") == "mine_7"

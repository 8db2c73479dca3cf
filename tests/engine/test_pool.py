"""Blocks that a request gives up are really free, and all come back."""

import pytest
from vllm.exceptions import VLLMValidationError

from tests.engine import harness

POOL = 255  # blocks of 32 tokens, and the null block
BLOCK_BYTES = 4 * 2 * 2 * 64 * 4 * harness.BLOCK  # layers, K and V, heads, head size, float32, tokens


@pytest.fixture(scope="module")
def llm():
    engine = harness.start(blocks=POOL + 1)
    yield engine
    harness.stop(engine)


@pytest.fixture(autouse=True)
def _returns_everything(llm):
    before = harness.free_blocks(llm)
    assert before == POOL
    yield
    drain(llm)
    assert harness.free_blocks(llm) == POOL
    harness.scheduler(llm).check_integrity()
    assert not harness.scheduler(llm).kv_requests
    assert not harness.runner(llm).kv.requests


def drain(llm):
    """Run until idle, and one step more: the worker learns of ends at the next step."""
    engine = llm.llm_engine
    while engine.has_unfinished_requests():
        engine.step()
    harness.generate(llm, [harness.tokens(3)], [None], 1)
    harness.generate(llm, [harness.tokens(3)], [None], 1)


def add(llm, name, prompt, policy, generate=60):
    llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, harness.params(policy, generate))


def test_free_blocks_rise_at_the_end_of_the_prompt(llm):
    add(llm, "a", harness.tokens(500, seed=1), {"name": "streaming", "budget": 128})
    curve = []
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        curve.append(harness.free_blocks(llm))
    assert curve[0] == POOL - 16  # 500 tokens in 16 blocks
    assert curve[1] == POOL - 5  # 128 tokens and the next one
    assert curve[-1] == POOL


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10, 40])
def test_abort_at_any_step(llm, steps):
    policies = ["snapkv:0.25", "scissorhands:64", None, "random:0.3"]
    for i, policy in enumerate(policies):
        add(llm, f"abort-{i}", harness.tokens(400 + 50 * i, seed=i), policy)
    for _ in range(steps):
        llm.llm_engine.step()
    running = list(harness.scheduler(llm).requests)
    assert len(running) == 4
    llm.llm_engine.abort_request(running, internal=True)


def test_preemption(llm):
    """More than the pool can hold: requests are preempted, complete, and stock ones say what they always say."""
    prompts = [harness.tokens(600, seed=i) for i in range(12)]
    policies = [None, None, None, None, "scissorhands:0.9", "random:0.9"] * 2
    alone = [harness.said(harness.generate(llm, [p], [None], 400)[0])[0] for p in prompts[:2]]
    preempted = count_preemptions(llm)
    outputs = harness.generate(llm, prompts, policies, 400)
    assert all(len(o.outputs[0].token_ids) == 400 for o in outputs)
    assert [harness.said(o)[0] for o in outputs[:2]] == alone
    assert preempted["count"] > 0


def count_preemptions(llm):
    scheduler, seen = harness.scheduler(llm), {"count": 0}
    stock = scheduler._preempt_request

    def counted(*args, **kwargs):
        seen["count"] += 1
        return stock(*args, **kwargs)

    scheduler._preempt_request = counted
    return seen


def test_shared_blocks_are_held_once(llm):
    """What the gauge says is held is what the pool has given out, however many requests share it."""
    prefix = harness.tokens(320, seed=9)
    harness.generate(llm, [prefix], [None], 1)
    scheduler = harness.scheduler(llm)
    for i, policy in enumerate([None, {"name": "knorm", "budget": 300}, None]):
        add(llm, f"shared-{i}", prefix + harness.tokens(40, seed=i), policy)
    for _ in range(8):
        llm.llm_engine.step()
        running = scheduler.running
        held = sum(scheduler.kv.held_bytes(r.request_id, r.num_computed_tokens)[0] for r in running)
        shared = scheduler.kv.shared_bytes([r.request_id for r in running])
        assert shared > 0
        assert held - shared == (POOL - harness.free_blocks(llm)) * BLOCK_BYTES
        scheduler.kv.snapshot(float("inf"))
        assert scheduler.kv.totals.resident_bytes == held - shared <= scheduler.kv.totals.full_bytes
    drain(llm)


def test_outcome_counts_tokens_and_bytes(llm):
    [output] = harness.generate(llm, [harness.tokens(500)], [{"name": "streaming", "budget": 128}], 40)
    record = harness.outcome(output)
    assert record == {
        "kv_call": "test",
        "policy": "streaming",
        "budget": 128,
        "logical_tokens": 539,  # the last token's keys are never computed
        "kept_tokens": 155.0,  # 128 at 512, and 27 since
        "evicted_tokens": 384.0,
        "merged_tokens": 0.0,
        "compactions": 2,
        "resident_bytes": 5 * BLOCK_BYTES,
        "full_bytes": 17 * BLOCK_BYTES,
    }


class TestLargerThanThePool:
    @pytest.fixture(scope="class")
    def small(self):
        engine = harness.start(blocks=24, max_num_batched_tokens=256, options={"resident_tokens": 600})
        yield engine
        harness.stop(engine)

    def test_completes_with_a_policy(self, small):
        prompts = [harness.tokens(3000, seed=i) for i in range(3)]
        outputs = harness.generate(small, prompts, ["streaming:128", "scissorhands:128", "snapkv:128"], 40)
        assert [len(o.outputs[0].token_ids) for o in outputs] == [40] * 3
        assert all(harness.outcome(o)["kept_tokens"] < 200 for o in outputs)

    def test_refused_with_full(self, small):
        for policy in (None, "full"):
            with pytest.raises(VLLMValidationError, match="KV cache holds 736 tokens") as error:
                harness.generate(small, [harness.tokens(3000)], [policy], 40)
            assert error.value.parameter == "kv_policy"

    def test_refused_with_too_large_a_budget(self, small):
        with pytest.raises(VLLMValidationError, match="choose a policy with a smaller budget"):
            harness.generate(small, [harness.tokens(3000)], ["streaming:700"], 40)

    def test_generation_ends_where_the_pool_does(self, small):
        [output] = harness.generate(small, [harness.tokens(600)], [None], 400)
        assert len(output.outputs[0].token_ids) == 136
        assert output.outputs[0].finish_reason == "length"

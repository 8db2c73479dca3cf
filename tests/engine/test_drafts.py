"""Speculative decoding with compression: greedy with drafts says what greedy without says, token for token.

`ngram` drafts from the text itself and is often right on the embedded model; the `micro` model, which drafts for
`mini`, brings layers and a cache of its own.
"""

import pytest
from llvmlite.binding import ffi

from kvserve.startup.guard import UnsupportedError
from models import MINI
from tests.engine import harness
from tests.engine.fuzz import Traffic
from tests.engine.test_pool import drain
from tests.engine.test_preempted import run

PROMPTS = [(harness.tokens(100, seed=n) * 8)[: 300 + 110 * n] for n in range(3)]
LENGTH = 100
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
DRAFTING = {
    "ngram": NGRAM,
    "draft_model": {"method": "draft_model", "model": str(MINI.parent / "micro"), "num_speculative_tokens": 3},
}


# When an engine starts, vLLM asks all that modules hold for their `__dict__`. The library behind numba, which drafts
# n-grams, has an answer to every name; without this no second engine could be started in this process.
_attribute = type(ffi.lib).__getattr__


def _attribute_if_any(self, name):
    if name == "__dict__":
        raise AttributeError(name)
    return _attribute(self, name)


type(ffi.lib).__getattr__ = _attribute_if_any


def started(**engine):
    with harness.scheduling(False):
        return harness.start(max_num_batched_tokens=256, **engine)


def fields(llm):
    """Every policy, at two budgets, and one that compresses what stands before the question."""
    every = [each for each in harness.policies(llm) if each["name"] != "ksa"]
    for each in every:
        if each["name"] == "triattention":
            each["protect_prompt"] = False
    wider = [{**each, "budget": 0.3, "slack": 16} for each in every if each["name"] in ("h2o", "rkv", "scissorhands")]
    return [None, *({**each, "budget": 100, "slack": 32} for each in every), *wider, {"name": "snapkv", "at": 170}]


def answers(llm, policies):
    """What is said to each prompt with each policy, and the record of it."""
    prompts = [prompt for prompt in PROMPTS for _ in policies]
    outputs = harness.generate(llm, prompts, policies * len(PROMPTS), LENGTH)
    return [(harness.said(output), (output.kv_transfer_params or {}).get("kvserve")) for output in outputs]


@pytest.fixture(scope="module")
def plain():
    """Without drafts."""
    llm = started()
    policies = fields(llm)
    yield policies, answers(llm, policies)
    harness.stop(llm)


@pytest.fixture(scope="module", params=DRAFTING)
def llm(request, plain):
    engine = started(speculative_config=DRAFTING[request.param])
    yield engine
    harness.stop(engine)


def test_same_tokens(llm, plain):
    policies, expected = plain
    said = answers(llm, policies)
    for policy, (was, record), (now, again) in zip(policies * len(PROMPTS), expected, said, strict=True):
        assert now[0] == was[0], policy
        assert max(abs(a - b) for a, b in zip(now[1], was[1], strict=True)) < 1e-3, policy
        if policy is not None:
            assert again["compactions"] == record["compactions"] >= 1, policy
            assert again["kept_tokens"] == record["kept_tokens"]
            assert "draft_tokens" not in record
            assert 0 < again["accepted_tokens"] <= again["draft_tokens"]
    assert sum(r["accepted_tokens"] < r["draft_tokens"] for _, r in said if r) > 10, "hardly a draft was rejected"
    drain(llm)
    assert not harness.runner(llm).kv.requests
    assert not len(harness.runner(llm).kv.queries)


@pytest.mark.parametrize("name", ["h2o", "streaming", "snapkv"])
def test_same_after_a_preemption(llm, name):
    policy = {"name": name, "budget": 100, "slack": 32}
    expected, _, kept = run(llm, policy)
    said, usage, again = run(llm, policy, preempt_after=(2, 3, 12, 30))
    assert said[0] == expected[0]
    assert again == kept
    assert usage["draft_tokens"]


def test_traffic_under_pressure():
    """Steps of drafts, aborts and preemptions on a tiny pool: who holds what is compared after each."""
    llm = started(blocks=60, max_model_len=1024, speculative_config=NGRAM, options={"groups": 1})
    before = harness.free_blocks(llm)
    traffic = Traffic(llm, 3)
    traffic.run(60)
    assert set(traffic.answers) | traffic.aborted == set(traffic.sent)
    assert all(len(tokens) == traffic.sent[req_id][2] for req_id, tokens in traffic.answers.items())
    drain(llm)
    assert harness.free_blocks(llm) == before
    assert not harness.runner(llm).kv.requests
    assert not len(harness.runner(llm).kv.queries)
    harness.stop(llm)


def test_asynchronous_steps_are_refused():
    with harness.scheduling(True), pytest.raises(UnsupportedError, match="start with --no-async-scheduling"):
        harness.start(speculative_config=DRAFTING["draft_model"])

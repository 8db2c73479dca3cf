"""Speculative decoding with compression: greedy with drafts says what greedy without says, token for token.

`ngram` drafts from the text itself and is often right on the embedded model. The `micro` model, which drafts for
`mini`, and an EAGLE head bring layers and a cache of their own; the head is untrained, and nearly always wrong.
"""

from functools import cache

import pytest
from llvmlite.binding import ffi

from kvserve.startup.guard import UnsupportedError
from models import MINI
from tests.engine import drafters, harness
from tests.engine.fuzz import Traffic
from tests.engine.test_pool import drain
from tests.engine.test_preempted import run

SAMPLE = ("h2o", "snapkv", "streaming", "elastic-cache")
"""One that gathers mass, one that reads queries, one that goes by positions and one that merges."""
PROMPTS = [(harness.tokens(100, seed=n) * 8)[: 300 + 110 * n] for n in range(3)]
LENGTH = 160
"""More than may wait to be counted together: see kvserve.evidence.gather."""
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
MICRO = {"method": "draft_model", "model": str(MINI.parent / "micro"), "num_speculative_tokens": 3}
GROUPS = {"ngram": 4, "draft_model": 1, "eagle3": 4}
"""Of layers. vLLM makes groups as small as the smallest: that of an EAGLE head leaves each layer one of its own."""


# When an engine starts, vLLM asks all that modules hold for their `__dict__`. The library behind numba, which drafts
# n-grams, has an answer to every name; without this no second engine could be started in this process.
_attribute = type(ffi.lib).__getattr__


def _attribute_if_any(self, name):
    if name == "__dict__":
        raise AttributeError(name)
    return _attribute(self, name)


type(ffi.lib).__getattr__ = _attribute_if_any


def started(groups, asynchronous=False, **engine):
    with harness.scheduling(asynchronous):
        return harness.start(**{"max_num_batched_tokens": 256, "blocks": 4096, "options": {"groups": groups}, **engine})


def fields(llm):
    """Every policy, at two budgets, and one that compresses what stands before the question."""
    every = [each for each in harness.policies(llm) if each["name"] != "ksa"]
    for each in every:
        if each["name"] == "triattention":
            each["protect_prompt"] = False
    wider = [{**each, "budget": 0.3, "slack": 16} for each in every if each["name"] in ("h2o", "rkv", "scissorhands")]
    return [None, *({**each, "budget": 100, "slack": 32} for each in every), *wider, {"name": "snapkv", "at": 170}]


def answers(llm, asked):
    """What is said to each prompt with each policy, and the record of it."""
    prompts, policies = zip(*asked, strict=True)
    outputs = harness.generate(llm, list(prompts), list(policies), LENGTH)
    return [(harness.said(output), (output.kv_transfer_params or {}).get("kvserve")) for output in outputs]


@cache
def plain(groups, asynchronous, extent):
    """Prompts with policies, and what is said without drafts. A worker's news come a step later if asynchronous."""
    llm = started(groups, asynchronous)
    policies = [p for p in fields(llm) if extent != "sample" or p is None or p["name"] in SAMPLE]
    asked = [(prompt, policy) for prompt in (PROMPTS if extent == "all" else PROMPTS[1:2]) for policy in policies]
    said = answers(llm, asked)
    harness.stop(llm)
    return asked, said


METHODS = [*GROUPS, "async draft_model", "async eagle3"]


@pytest.fixture(scope="module", params=[*METHODS, *(pytest.param(f"all {m}", marks=pytest.mark.slow) for m in METHODS)])
def engine_and_answers(request, tmp_path_factory):
    """An engine with drafts, and `plain`: by then its engine has stopped, and two would share what vLLM has one of."""
    *how, method = request.param.split()
    speculative = {"ngram": NGRAM, "draft_model": MICRO}.get(method)
    speculative = speculative or drafters.eagle3(tmp_path_factory.mktemp("drafters") / "eagle3")
    asynchronous = "async" in how
    extent = "all" if "all" in how else "some" if method == "ngram" else "sample"
    expected = plain(GROUPS[method], asynchronous, extent)
    engine = started(GROUPS[method], asynchronous, speculative_config=speculative)
    yield engine, expected
    harness.stop(engine)


@pytest.fixture
def llm(engine_and_answers):
    return engine_and_answers[0]


def test_same_tokens(engine_and_answers):
    llm, (asked, expected) = engine_and_answers
    method = harness.runner(llm).speculative_config.method
    said = answers(llm, asked)
    for (_, policy), (was, record), (now, again) in zip(asked, expected, said, strict=True):
        assert now[0] == was[0], policy
        assert max(abs(a - b) for a, b in zip(now[1], was[1], strict=True)) < 1e-3, policy
        if policy is not None:
            assert again["compactions"] == record["compactions"] >= 1, policy
            assert again["kept_tokens"] == record["kept_tokens"]
            assert "draft_tokens" not in record
            assert again["accepted_tokens"] <= again["draft_tokens"] > 0
    assert method == "eagle3" or sum(r["accepted_tokens"] for _, r in said if r) > 13 * len(said)
    assert sum(r["accepted_tokens"] < r["draft_tokens"] for _, r in said if r) > len(said) / 8, "hardly any is rejected"
    drain(llm)
    assert not harness.runner(llm).kv.requests
    assert not len(harness.runner(llm).kv.queries)


@pytest.mark.parametrize("name", ["h2o", "snapkv", pytest.param("streaming", marks=pytest.mark.slow)])
def test_same_after_a_preemption(llm, name):
    policy = {"name": name, "budget": 100, "slack": 32}
    expected, _, kept = run(llm, policy)
    said, usage, again = run(llm, policy, preempt_after=(2, 3, 12, 30))
    assert said[0] == expected[0]
    assert again == kept
    assert usage["draft_tokens"]


def test_traffic_under_pressure():
    """Steps of drafts, aborts and preemptions on a tiny pool: who holds what is compared after each."""
    llm = started(1, blocks=60, max_model_len=1024, speculative_config=NGRAM)
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


def test_layers_of_a_draft_model_that_fit_into_no_group_are_refused():
    with pytest.raises(UnsupportedError, match=r"its 4 layers.*--kv-groups is 4.*allowed: 1"):
        started(4, speculative_config=MICRO)

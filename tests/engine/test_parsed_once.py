"""From the HTTP body to the rewritten cache, and to a canary's replay, a policy is parsed and checked once."""

import time
from collections import Counter

import pytest
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from kvserve.policy import request as wire
from kvserve.startup import facts
from kvserve.startup.options import KVOptions
from policies.snapkv import SnapKV
from server.canary.replay import replay_of
from server.http.choice import Choice
from tests.engine import harness

ASKED = {"name": "snapkv", "budget": 77, "window": 8}
PROMPT = harness.tokens(200)


@pytest.fixture
def counted(monkeypatch):
    """How often each was called."""
    calls = Counter()

    def count(owner, name):
        stock = getattr(owner, name)

        def counting(*args, **kwargs):
            calls[name] += 1
            return stock(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((wire, "parse"), (wire, "dump"), (SnapKV, "check"), (SnapKV, "settled"), (facts, "made_of")):
        count(owner, name)
    monkeypatch.setattr("kvserve.engine.accounts.made_of", facts.made_of)  # imported by name
    wire.forget()
    return calls


def test_a_request_is_parsed_once(counted):
    llm = harness.start()  # with its worker in this process
    config = llm.llm_engine.vllm_config
    chosen = Choice(KVOptions(), facts.facts_of(config)).of(dict(ASKED), {}, None)
    outputs = harness.generate(llm, [PROMPT] * 2, [chosen.text] * 2)
    assert [harness.outcome(output)["compactions"] > 0 for output in outputs] == [True, True]
    params = SamplingParams(temperature=0, extra_args={wire.KEY: chosen.text})
    request = EngineCoreRequest("a", PROMPT, None, params, None, time.time(), None, None, None)
    assert replay_of(request, [1, 2], config).policy == "snapkv"
    harness.stop(llm)
    assert counted == {"parse": 1, "dump": 1, "check": 1, "settled": 1, "made_of": 1}


def test_a_string_without_a_server_is_parsed_once(counted):
    """As offline use and `vllm_xargs` of plain `vllm serve` send it."""
    llm = harness.start()
    for _ in range(2):
        harness.generate(llm, [PROMPT], ["snapkv:0.4"])
    harness.stop(llm)
    assert (counted["parse"], counted["check"]) == (1, 1)

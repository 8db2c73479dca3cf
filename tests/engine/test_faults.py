"""A policy that fails ends its own request, with an error that says so; the batch goes on."""

import pytest

from tests.engine import harness, raising

GOOD = ["snapkv:0.5", None, "h2o:0.5"]


@pytest.fixture(scope="module")
def llm():
    with raising.installed():
        engine = harness.start(blocks=512)
        yield engine
        harness.stop(engine)


def asked(where, after=0, **more):
    return {"name": "raising", "budget": 64, "recent": 8, "slack": 16, "where": where, "after": after, **more}


def test_it_works_when_it_is_well(llm):
    [output] = harness.generate(llm, [harness.tokens(200)], [asked("")])
    assert output.outputs[0].finish_reason == "length"
    assert harness.outcome(output)["evicted_tokens"] > 100


@pytest.mark.parametrize("where", ["select"])
def test_the_request_ends(llm, where):
    prompts = [harness.tokens(200, seed=i) for i in range(4)]
    right = harness.generate(llm, prompts[1:], GOOD)
    before = harness.scheduler(llm).kv.totals.of("raising").errors
    failed, *others = harness.generate(llm, prompts, [asked(where), *GOOD])
    assert failed.outputs[0].finish_reason == "error"
    assert failed.outputs[0].stop_reason == failed.kv_transfer_params["kvserve"]["error"]
    assert failed.outputs[0].stop_reason.startswith("kv_policy 'raising' failed while ")
    assert [harness.said(o) for o in others] == [harness.said(o) for o in right]
    assert harness.scheduler(llm).kv.totals.of("raising").errors == before + 1
    harness.scheduler(llm).check_integrity()
    assert harness.free_blocks(llm) == 511

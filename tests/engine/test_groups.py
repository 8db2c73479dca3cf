"""Layer groups: budgets by layer with blocks really freed, and a clear refusal where there is one group only."""

import shutil

import pytest
from vllm.exceptions import VLLMValidationError

from models import MINI
from tests.engine import harness

PROMPT = harness.tokens(600, seed=2)
SLOPED = {"name": "scissorhands", "budget": 100, "slope": 0.4}
PYRAMID = {"name": "pyramidkv", "budget": 100, "window": 16, "decode": True}
PREFIX = {"name": "prefixkv", "budget": 100}
UNEVEN = [SLOPED, PYRAMID, PREFIX, {**PREFIX, "profile": "offline"}]


@pytest.fixture(scope="module")
def llm():
    engine = harness.start(blocks=4 * 256, max_num_batched_tokens=1024, options={"groups": 4})
    yield engine
    harness.stop(engine)


@pytest.mark.parametrize("policy", UNEVEN, ids=lambda p: p["name"] + p.get("profile", ""))
def test_layers_get_their_shares(llm, policy):
    harness.selections(llm)
    before = harness.free_blocks(llm)
    llm.llm_engine.add_request("a", {"prompt_token_ids": PROMPT}, harness.params(policy, 40))
    llm.llm_engine.step()
    assert harness.free_blocks(llm) == before - 4 * 19  # 600 tokens in each of 4 groups
    llm.llm_engine.step()
    counts = [s.positions.shape[1] for s in harness.selections(llm)]
    assert len(counts) == 4
    assert abs(sum(counts) - 4 * 100) <= (2 if policy["name"] == "prefixkv" else 0)  # each layer's share is rounded
    if policy["name"] != "prefixkv":
        assert counts == sorted(counts, reverse=policy is PYRAMID)
    assert max(counts) - min(counts) > 10
    held = sum(-(-(count + 1) // harness.BLOCK) for count in counts)
    assert harness.free_blocks(llm) == before - held
    [output] = [o for o in _drained(llm) if o.finished]
    assert harness.outcome(output)["kept_tokens"] < 150
    assert harness.free_blocks(llm) == before
    assert "granularity" not in harness.outcome(output)


def _drained(llm):
    outputs = []
    while llm.llm_engine.has_unfinished_requests():
        outputs += llm.llm_engine.step()
    return outputs


def test_a_layer_keeps_its_share_while_generating(llm):
    """PrefixKV: after the prompt each layer's length stays its own share of the budget."""
    harness.selections(llm)
    harness.generate(llm, [PROMPT], [{"name": "prefixkv", "budget": 0.25, "slack": 16}], 200)
    rounds = {}
    for s in harness.selections(llm):
        rounds.setdefault(s.logical, {})[s.layer] = s.positions.shape[1]
    first = rounds[min(rounds)]
    assert len(rounds) > 10
    for logical, counts in rounds.items():
        for layer, count in counts.items():
            assert abs(count - first[layer] * logical / min(rounds)) <= 2


def test_one_group_gives_the_mean_and_says_so():
    engine = harness.start(blocks=64, max_model_len=1024)
    for policy in (SLOPED, PYRAMID, PREFIX):
        with pytest.raises(VLLMValidationError, match="start it with --kv-groups 4") as error:
            harness.generate(engine, [PROMPT], [{**policy, "granularity": "layer"}], 4)
        assert error.value.parameter == "kv_policy.granularity"
        for asked in (policy, {**policy, "granularity": "group"}):
            harness.selections(engine)
            [output] = harness.generate(engine, [PROMPT], [asked], 2)
            assert {s.positions.shape[1] for s in harness.selections(engine)} == {100}  # the mean of all four
            assert harness.outcome(output)["granularity"] == "group"
    [even] = harness.generate(engine, [PROMPT], ["scissorhands:100"], 2)
    assert "granularity" not in harness.outcome(even)
    harness.stop(engine)


def test_a_server_makes_the_groups_that_policies_need(tmp_path):
    """Nobody said how many: two bundles, or as many as keep a model's two kinds of layers apart."""
    plain = tmp_path / "plain"
    shutil.copytree(MINI, plain, ignore=shutil.ignore_patterns("summary.safetensors"))
    for model, bundles in ((plain, [[0, 1], [2, 3]]), (MINI, [[0], [1], [2], [3]])):  # layer 1 keeps all text
        engine = harness.start(model=model, num_gpu_blocks_override=None)
        assert [list(bundle) for bundle in harness.scheduler(engine).kv.layers] == bundles
        [output] = harness.generate(engine, [PROMPT], [PYRAMID], 2)
        counts = {s.layer: s.positions.shape[1] for s in harness.selections(engine)}
        assert counts[0] > counts[3]
        assert all(len({counts[layer] for layer in bundle}) == 1 for bundle in bundles)
        assert (harness.outcome(output).get("granularity") == "group") == (model is plain)
        harness.stop(engine)


def test_layers_that_do_not_divide_are_refused():
    with pytest.raises(Exception, match="does not divide the 4 compressible layers"):
        harness.start(blocks=64, options={"groups": 3})

"""A request that says at which token its prompt is compacted: the rest of it is read as if it had been generated."""

import pytest
from vllm.exceptions import VLLMValidationError

from models import MINI
from tests.engine import harness, reference
from tests.engine.test_reference import CASES, UNEVEN

PROMPT = harness.tokens(330, seed=7)
AT = 180
LENGTH = 12
CACHED = {"streaming": [160, 160], "snapkv": [128, 160], "h2o": [0, 0], "knorm": [160, 160]}
SOME = [CASES[i] for i in (0, 1, 2, 4, 5, 6, 8, 10, 11, 13, 16, 17, 19, 20)]


@pytest.fixture(scope="module")
def model():
    return reference.load(str(MINI))


@pytest.fixture(scope="module")
def llm():
    engine = harness.start(max_num_batched_tokens=160, max_num_seqs=16)
    yield engine
    harness.stop(engine)


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def layered(request):
    with harness.scheduling(request.param):
        engine = harness.start(blocks=4 * 256, options={"groups": 4})
    yield engine
    harness.stop(engine)


def ask(llm, policy, prompt=PROMPT, **more):
    """One request; forced log-probabilities of the prompt's rest, tokens, their log-probabilities."""
    sampling = harness.params(policy, LENGTH, prompt_logprobs=0, **more)
    [output] = llm.generate([{"prompt_token_ids": prompt}], [sampling], use_tqdm=False)
    forced = [step[token].logprob for step, token in zip(output.prompt_logprobs[AT:], prompt[AT:], strict=True)]
    return forced, *harness.said(output)


def same(llm, model, case):
    """The engine keeps, says and thinks of the rest what the reference does that is forced to say it."""
    name, fields, act = case
    harness.selections(llm)
    forced, tokens, logps = ask(llm, {"name": name, **fields, "at": AT})
    rest = PROMPT[AT:]
    ref_tokens, ref_logps, rounds = reference.run(model, PROMPT[:AT], len(rest) + LENGTH, act(), rest)

    found = {(s.logical, s.layer, h): r.tolist() for s in harness.selections(llm) for h, r in enumerate(s.positions)}
    assert found == {(at, layer, h): kept for at, keep in rounds for (layer, h), kept in keep.items()}
    assert rounds and rounds[0][0] >= AT
    assert tokens == ref_tokens[len(rest) :]
    assert max(abs(a - b) for a, b in zip(forced + logps, ref_logps, strict=True)) < 1e-4
    return [logical for logical, _ in rounds]


@pytest.mark.parametrize("index", range(len(SOME)), ids=lambda i: f"{i}-{SOME[i][0]}-{SOME[i][1]['budget']}")
def test_same_as_reference(llm, model, index):
    same(llm, model, SOME[index])


@pytest.mark.parametrize("index", range(len(UNEVEN)), ids=lambda i: f"{UNEVEN[i][0]}-{UNEVEN[i][1]['budget']}")
def test_uneven_layers_same_as_reference(layered, model, index):
    same(layered, model, UNEVEN[index])


def test_rounds_within_the_rest(llm, model):
    """Compactions that fall due while the rest of the prompt is read take place at their tokens."""
    case = ("streaming", {"budget": 128, "slack": 32}, lambda: reference.streaming(128, slack=32))
    assert same(llm, model, case) == [AT, *range(192, len(PROMPT) + LENGTH, 32)]


def test_prompt_only(llm, model):
    case = ("snapkv", {"budget": 96, "decode": False}, lambda: once(reference.snapkv(96)))
    assert same(llm, model, case) == [AT]


def once(act):
    return lambda trace, logical, physical, fresh: act(trace, logical, physical, fresh) if fresh else None


@pytest.mark.parametrize("policy", ["streaming", "snapkv", "h2o", "knorm"])
def test_a_warm_prefix_changes_nothing(llm, policy):
    """Also if all of the prompt is cached, it is read up to the token and compacted there."""
    asked = [{"name": policy, "budget": 100, "at": at, "decode": False} for at in (AT, 192)]
    assert llm.reset_prefix_cache()
    cold = [harness.said(harness.generate(llm, [PROMPT], [each], LENGTH)[0])[0] for each in asked]
    harness.generate(llm, [PROMPT], [None], LENGTH)
    outputs = [harness.generate(llm, [PROMPT], [each], LENGTH, warm=True)[0] for each in asked]
    assert [harness.said(output)[0] for output in outputs] == cold
    assert [output.num_cached_tokens for output in outputs] == CACHED[policy]


def test_the_end_is_where_it_always_was(llm):
    plain, at_end = ({"name": "snapkv", "budget": 100, **more} for more in ({}, {"at": len(PROMPT)}))
    outputs = [harness.generate(llm, [PROMPT], [policy], LENGTH)[0] for policy in (plain, at_end)]
    assert harness.said(outputs[0]) == harness.said(outputs[1])


def test_neighbours_do_not_matter(llm):
    asked = [
        {"name": n, "budget": 100, "at": at, "slack": 32}
        for n in ("streaming", "snapkv", "scissorhands")
        for at in (100, 181, 320)
    ]
    alone = [harness.said(harness.generate(llm, [PROMPT], [policy], LENGTH)[0])[0] for policy in asked]
    together = harness.generate(llm, [PROMPT] * len(asked), asked, LENGTH)
    assert [harness.said(output)[0] for output in together] == alone


def test_beyond_the_prompt_is_refused(llm):
    with pytest.raises(
        VLLMValidationError, match=r"kv_policy\.at is 331, but the prompt has 330 tokens; allowed: 1 to 330"
    ):
        harness.generate(llm, [PROMPT], [{"name": "streaming", "budget": 100, "at": 331}])


def test_a_prompt_larger_than_the_pool():
    """After the token only what the policy leaves is held, so the pool needs no room for all of the prompt."""
    llm = harness.start(blocks=24, options={"resident_tokens": 700})
    prompt, policies = harness.tokens(1500, seed=3), ["streaming", "snapkv", "h2o"]
    try:
        asked = [{"name": n, "budget": 100, "at": 300, "slack": 32, "decode": True} for n in policies]
        outputs = harness.generate(llm, [prompt] * len(asked), asked, LENGTH)
        assert [harness.outcome(output)["kept_tokens"] < 140 for output in outputs] == [True] * len(asked)
        with pytest.raises(VLLMValidationError, match="needs room for 1302"):
            harness.generate(llm, [prompt], [{"name": "snapkv", "budget": 100, "at": 300, "decode": False}])
        harness.scheduler(llm).check_integrity()
    finally:
        harness.stop(llm)

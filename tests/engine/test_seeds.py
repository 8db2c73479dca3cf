"""`seed` on prompts that are read in several steps: a partial chunk is no draw."""

import pytest

from tests.engine import harness

LONG = harness.tokens(700, seed=1)
SHORT = harness.tokens(90, seed=2)


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def chunked(request):
    """A step reads at most 256 tokens."""
    with harness.scheduling(request.param):
        engine = harness.start(max_num_batched_tokens=256)
    yield engine
    harness.stop(engine)


@pytest.fixture(scope="module")
def whole():
    engine = harness.start(max_num_batched_tokens=4096)
    yield engine
    harness.stop(engine)


def answer(llm, prompt, policy, others=(), seed=7):
    """The tokens of a request with a seed, in a batch with others."""
    assert llm.reset_prefix_cache()
    prompts = [{"prompt_token_ids": p} for p in (prompt, *others)]
    first = harness.params(policy, 30, temperature=1.0, seed=seed)
    rest = [harness.params(None, 30, temperature=1.0, seed=3) for _ in others]
    return list(llm.generate(prompts, [first, *rest], use_tqdm=False)[0].outputs[0].token_ids)


@pytest.mark.parametrize("policy", [None, "snapkv:0.5", "streaming:64"])
def test_a_prompt_longer_than_a_chunk(chunked, whole, policy):
    assert answer(chunked, LONG, policy) == answer(whole, LONG, policy)


def test_among_others_that_are_read_in_parts(chunked, whole):
    right = answer(whole, SHORT, None)
    assert answer(chunked, SHORT, None, [LONG, harness.tokens(600, seed=3)]) == right


def test_compacted_before_its_last_tokens(chunked):
    """A part of any prompt is a chunk of its own; the draws are those of the same prompt at full cache."""
    late = {"name": "streaming", "budget": 4000, "at": 70}  # compacts nothing
    assert answer(chunked, SHORT, late) == answer(chunked, SHORT, None)
    early = {"name": "streaming", "budget": 40, "at": 70}
    assert answer(chunked, SHORT, early) == answer(chunked, SHORT, early)


def test_a_seed_is_a_seed(chunked):
    assert answer(chunked, LONG, None) != answer(chunked, LONG, None, seed=8)

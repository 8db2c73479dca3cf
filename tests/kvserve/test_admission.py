"""A request that can never fit is refused at once; one that fits at first ends where the pool does."""

from itertools import product

import pytest

from kvserve.policy import Facts, Moment, registry, request
from kvserve.policy.admission import fitting, refuse_pictures, whole_prefill
from kvserve.policy.errors import PolicyError

FACTS = Facts(num_layers=4, groups=1, block_size=32, pool_tokens=736, max_model_len=4096, chunk=256)
COMPRESSING = [n for n, p in registry.installed().items() if p.compresses and p.budgeted]


def test_full_prompt_larger_than_the_pool():
    with pytest.raises(PolicyError, match=r"3000 tokens .* holds 736") as error:
        fitting(request.parse("full"), 3000, 10, FACTS)
    assert error.value.reason == "too_long"


def test_full_generation_is_bounded():
    assert fitting(request.parse("full"), 700, 1000, FACTS) == 36
    assert fitting(request.parse("full"), 700, 20, FACTS) == 20


@pytest.mark.parametrize("name", COMPRESSING)
def test_policy_makes_a_long_prompt_fit(name):
    fields = {"protect_prompt": False} if name == "triattention" else {}
    policy = request.parse({"name": name, "budget": 128, **fields})
    assert not whole_prefill(policy, 3000, FACTS)
    assert fitting(policy, 3000, 200, FACTS) == 200


def test_a_protected_prompt_must_fit():
    with pytest.raises(PolicyError, match="prompt has 3000 tokens and needs room for 3001"):
        fitting(request.parse("triattention:128"), 3000, 200, FACTS)


@pytest.mark.parametrize("name", COMPRESSING)
def test_peak_is_never_exceeded(name):
    for budget, prompt in product((64, 300, 0.1, 0.5), (50, 700, 3000)):
        policy, generate = request.parse({"name": name, "budget": budget}), 400
        whole = whole_prefill(policy, prompt, FACTS)
        seen = most_held(policy, prompt, generate, whole)
        assert seen <= policy.peak(prompt, generate, FACTS.chunk, whole), f"budget {budget}, prompt of {prompt}"


def most_held(policy, prompt, generate, whole):
    """Walk through the life of a request as the scheduler does, with the largest chunks."""
    logical = physical = seen = 0
    while logical < prompt + generate:
        stage = "prefill" if logical < prompt else ("prefilled" if logical == prompt else "decode")
        if logical and not (stage == "prefill" and whole):
            keep = policy.due(Moment(logical, physical, stage))
            if keep is not None:
                assert 0 < keep < physical
                physical = keep
        step = min(FACTS.chunk, prompt - logical) if logical < prompt else 1
        logical, physical = logical + step, physical + step
        seen = max(seen, physical)
    return seen


@pytest.mark.parametrize("name", COMPRESSING)
def test_peak_grows_with_generation(name):
    policy = request.parse({"name": name, "budget": 0.3})
    peaks = [policy.peak(500, n, 256, True) for n in range(1, 2000, 37)]
    assert peaks == sorted(peaks)


def test_what_is_read_after_the_compaction_counts_as_generated():
    policy = request.parse({"name": "streaming", "budget": 128, "at": 500})
    assert fitting(policy, 3000, 200, FACTS) == 200
    kept = request.parse({"name": "streaming", "budget": 128, "at": 500, "decode": False})
    assert fitting(kept, 1000, 200, FACTS) == 107  # 128 + 500 that stay, and one token's room for the next


@pytest.mark.parametrize("name", COMPRESSING)
def test_pictures_whose_tokens_attend_to_each_other_are_not_compressed(name):
    facts = FACTS._replace(picture_spans=True)
    with pytest.raises(PolicyError, match="attend to each other; send text only, or use 'full'") as error:
        refuse_pictures(request.parse(name), facts)
    assert error.value.reason == "unsupported"
    refuse_pictures(request.parse("full"), facts)


def test_other_pictures_are():
    for facts in (FACTS, FACTS._replace(mrope=True)):
        refuse_pictures(request.parse("snapkv"), facts)
    with pytest.raises(PolicyError, match=r"\(M-RoPE\), not by one; send text only, or choose another policy"):
        refuse_pictures(request.parse("expected-attention"), FACTS._replace(mrope=True))

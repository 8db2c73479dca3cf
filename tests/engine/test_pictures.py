"""Vision models in our own CPU set-up: they start, see, and forget by the same rules."""

import numpy as np
import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError

from tests.engine import harness, sighted

SAMPLE = ("qwen2.5-vl", "smolvlm")  # the others are of the same code in other places
POLICIES = [None, "full", "snapkv:4000", "streaming:48", "snapkv:48", "h2o:48"]
TEXT = "What is it? " * 10


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(
    scope="module", params=[pytest.param(f, marks=() if f in SAMPLE else pytest.mark.slow) for f in sighted.FAMILIES]
)
def served(request, tmp_path_factory):
    folder = sighted.make(request.param, tmp_path_factory.mktemp("pictures") / request.param)
    settings = {"model": folder, "max_model_len": 1024, "blocks": 128, "limit_mm_per_prompt": {"image": 1, "video": 0}}
    stock = harness.start(kv=False, **settings)
    expected = [harness.said(o) for o in ask(stock, request.param, [None] * 2, [1, 2])]
    harness.stop(stock)
    llm = harness.start(**settings)
    yield request.param, llm, expected
    harness.stop(llm)


def ask(llm, family, policies, pictures):
    """One batch of the same question about these pictures."""
    prompts = [
        {"prompt": sighted.prompt(family, TEXT), "multi_modal_data": {"image": picture(seed)}} for seed in pictures
    ]
    return llm.generate(prompts, [harness.params(p, 24) for p in policies], use_tqdm=False)


def test_off_is_stock(served):
    family, llm, expected = served
    assert [harness.said(o) for o in ask(llm, family, [None] * 2, [1, 2])] == expected
    assert expected[0] != expected[1], "it does not see the picture"


def test_policies(served):
    family, llm, _ = served
    assert llm.reset_prefix_cache()
    outputs = ask(llm, family, POLICIES, [3] * len(POLICIES))
    full, same = harness.said(outputs[0])[0], [harness.said(o)[0] for o in outputs[1:3]]
    assert same == [full, full]
    for output in outputs[3:]:
        assert harness.outcome(output)["compactions"] >= 1
        assert harness.outcome(output)["kept_tokens"] < 48 + 24 + 1
    alone = [harness.said(ask(llm, family, [policy], [3])[0])[0] for policy in POLICIES[3:]]
    assert alone == [harness.said(o)[0] for o in outputs[3:]]


def test_a_rotation_by_several_positions_is_not_undone_by_one(served):
    """Text is served; with a picture the policy is refused by name where its tokens have three positions (M-RoPE)."""
    family, llm, _ = served
    policy = {"name": "expected-attention", "budget": 64}
    text = {"prompt": TEXT}
    [output] = llm.generate([text], [harness.params(policy, 24)], use_tqdm=False)
    assert harness.outcome(output)["compactions"] >= 1
    if not family.startswith("qwen"):
        assert harness.outcome(ask(llm, family, [policy], [3])[0])["compactions"] >= 1
        return
    with pytest.raises(VLLMValidationError, match="M-RoPE"):
        ask(llm, family, [policy], [3])

"""Prefix hits in a model with sliding-window layers: a hit that is cut short must be one for every layer."""

import pytest

from kvserve.policy import request as wire
from tests.engine import harness, hybrids

PREFIX = harness.tokens(420, seed=3)
PROMPT = PREFIX + harness.tokens(40, seed=4)
LENGTH = 24
READERS = ["snapkv:0.25", "snapkv:4000", "scissorhands:64", "tova:0.25", "rkv:0.25", "keydiff:0.25", "streaming:0.25"]
AT = [{"name": "keydiff", "budget": 0.5, "at": at} for at in (100, 256, 333)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = hybrids.windowed(tmp_path_factory.mktemp("windowed"))
    engine = harness.start(model=folder, skip_tokenizer_init=True, max_model_len=1024, blocks=512)
    yield engine
    harness.stop(engine)


def ask(llm, prompt, policy, length=LENGTH, warm=True):
    [output] = harness.generate(llm, [prompt], [policy], length, warm=warm)
    return harness.said(output), output.num_cached_tokens


@pytest.mark.parametrize("policy", [*READERS, *AT], ids=str)
def test_warm_says_what_cold_says(llm, policy):
    cold, _ = ask(llm, PROMPT, policy, warm=False)
    ask(llm, PREFIX, None, 4, warm=False)
    for _ in range(2):
        warm, hit = ask(llm, PROMPT, policy)
        assert warm[0] == cold[0]
        assert max(abs(a - b) for a, b in zip(warm[1], cold[1], strict=True)) < 1e-4
    # Windows stay at ends that were asked for before; the 400 queries of scissorhands leave nothing to hit.
    assert hit > 0 or policy == "scissorhands:64"


def test_prefix_in_common_in_one_batch(llm):
    prompts = [PREFIX + harness.tokens(40, seed=s) for s in (4, 5, 6)]
    policies = ["snapkv:0.25", None, "snapkv:4000"]
    cold = [ask(llm, prompt, policy, warm=False)[0] for prompt, policy in zip(prompts, policies, strict=True)]
    ask(llm, PREFIX, None, 4, warm=False)
    outputs = harness.generate(llm, prompts, policies, LENGTH, warm=True)
    assert [harness.said(o)[0] for o in outputs] == [tokens for tokens, _ in cold]


def test_replay_of_a_canary(llm):
    """It looks at the prefix cache too, and says of the answer what it says without one."""
    params = harness.params(None, 1, prompt_logprobs=1, skip_reading_prefix_cache=False)

    def judge(warm):
        params.extra_args = {wire.CANARY: 300}
        if not warm:
            assert llm.reset_prefix_cache()
        core = llm.llm_engine.engine_core
        tasks = llm.llm_engine.get_supported_tasks()
        request = llm.llm_engine.input_processor.process_inputs("r", {"prompt_token_ids": PROMPT}, params, tasks)
        request.sampling_params.extra_args = {wire.CANARY: 300}  # what the front end takes from clients
        core.add_request(request)
        while not (outputs := core.get_output().outputs):
            pass
        return outputs[0].new_prompt_logprobs_tensors.logprobs[-(len(PROMPT) - 300) :]

    cold = judge(False)
    ask(llm, PREFIX, None, 4)
    assert (judge(True) - cold).abs().max() < 1e-4


def test_compressed_request_publishes_no_window(llm):
    """What a window layer computes after a compaction depends on it, and must not be found by others."""
    policy = {"name": "streaming", "budget": 48, "at": 100}
    cold, _ = ask(llm, PROMPT, None, warm=False)
    assert llm.reset_prefix_cache()
    ask(llm, PREFIX, policy)
    ask(llm, PREFIX, None)
    warm, hit = ask(llm, PROMPT, None)
    assert hit > 400
    assert warm[0] == cold[0]
    assert max(abs(a - b) for a, b in zip(warm[1], cold[1], strict=True)) < 1e-4

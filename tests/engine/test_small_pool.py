"""Pools smaller than one request of full length: what can't be served is refused, what is let in comes to an end."""

import pytest
from vllm.exceptions import VLLMValidationError

from tests.engine import harness, hybrids
from tests.engine.test_pool import add, drain

POOL = 40  # blocks of 32 tokens; a window layer's group takes up to 11 of them: 64 + 256 tokens, and one
STEPS = 3000
WINDOW_GROUPS = 2


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A hybrid with one group of full-attention layers and two of window layers, in one pool."""
    folder = hybrids.windowed(tmp_path_factory.mktemp("windowed"))
    engine = harness.start(
        model=folder, skip_tokenizer_init=True, max_model_len=2048, max_num_batched_tokens=256, blocks=POOL + 1,
        options={"resident_tokens": 500},
    )  # fmt: skip
    yield engine
    harness.stop(engine)


@pytest.fixture(autouse=True)
def _returns_everything(llm):
    yield
    drain(llm)
    assert harness.free_blocks(llm) == POOL
    harness.scheduler(llm).check_integrity()


def run(llm, *requests):
    """Prompt length, policy, tokens to generate; the number that each has generated. Fails if they get stuck."""
    for i, (prompt, policy, generate) in enumerate(requests):
        add(llm, f"r{i}", harness.tokens(prompt, seed=i), policy, generate)
    made = {}
    for _ in range(STEPS):
        if not llm.llm_engine.has_unfinished_requests():
            return [made[name] for name in sorted(made)]
        for output in llm.llm_engine.step():
            made[output.request_id.split("-")[0]] = len(output.outputs[0].token_ids)
    left = harness.scheduler(llm).requests.values()
    states = [(r.request_id, r.status.name, r.num_computed_tokens, r.num_preemptions) for r in left]
    llm.llm_engine.abort_request([name for name, *_ in states], internal=True)
    pytest.fail(f"stuck: {states}")


def test_facts(llm):
    facts = harness.scheduler(llm).kv.facts
    assert facts.pool_blocks == POOL
    assert [g.kind for g in facts.other_groups] == ["sliding_window"] * WINDOW_GROUPS


@pytest.mark.parametrize("prompt", [900, 1200, 2000])
def test_full_that_cannot_fit_is_refused(llm, prompt):
    """900 tokens are 29 blocks, and the windows take up to 11 each: more than there are."""
    with pytest.raises(VLLMValidationError, match="tokens in all"):
        add(llm, "x", harness.tokens(prompt), None, 30)


def test_full_ends_where_the_pool_does(llm):
    [made] = run(llm, (300, None, 1500))
    assert 200 < made < 400


def test_long_prompt_with_a_policy(llm):
    [made] = run(llm, (1500, {"name": "streaming", "budget": 128}, 200))
    assert made == 200


def test_policy_that_keeps_too_much_is_refused(llm):
    with pytest.raises(VLLMValidationError, match="tokens in all"):
        add(llm, "x", harness.tokens(1500), "streaming:0.5", 30)


@pytest.mark.parametrize(
    "requests",
    [
        [(400, None, 150), (1500, {"name": "streaming", "budget": 128}, 200)],
        [(1500, {"name": "streaming", "budget": 128}, 200), (400, None, 150)],
        [(400, None, 150), (400, {"name": "snapkv", "budget": 0.9}, 150), (1200, "snapkv:0.1", 300)],
        [(450, {"name": "h2o", "budget": 100, "when": "pressure"}, 100)] * 4,
        [(100 * i, {"name": "scissorhands", "budget": 64}, 100) for i in range(1, 12)],
        [(1000, {"name": "tova", "budget": 64, "at": 700}, 60), (500, None, 60), (1000, "rkv:64", 60)],
    ],
    ids=["full-then-long", "long-then-full", "three", "pressure", "many", "at"],
)
def test_never_stuck(llm, requests):
    made = run(llm, *requests)
    assert made == [generate for _, _, generate in requests]

"""Prefix caching stays on: results equal those without it, and nothing leaks from one request to another."""

import pytest

from tests.engine import harness

PROMPT = harness.tokens(600, seed=11)
WHOLE = ["elastic-cache:0.25", "h2o:100", "expected-attention:100"]  # their evidence comes from all queries
POLICIES = ["streaming:0.25", "snapkv:0.25", "scissorhands:0.25", "knorm:100", "random:100", *WHOLE]


@pytest.fixture(scope="module")
def uncached():
    """Answers with prefix caching off."""
    engine = harness.start(enable_prefix_caching=False)
    answers = {p: harness.said(harness.generate(engine, [PROMPT], [p])[0])[0] for p in [None, *POLICIES]}
    harness.stop(engine)
    return answers


@pytest.fixture(scope="module")
def llm(uncached):
    engine = harness.start(max_num_seqs=128, blocks=4096)
    yield engine
    harness.stop(engine)


def ask(llm, policies, prompt=PROMPT):
    outputs = harness.generate(llm, [prompt] * len(policies), policies, warm=True)
    return [harness.said(o)[0] for o in outputs], [o.num_cached_tokens for o in outputs]


@pytest.mark.parametrize("policy", POLICIES)
def test_compressed_after_stock_after_compressed(llm, uncached, policy):
    llm.reset_prefix_cache()
    for step, asked in enumerate([None, policy, None, policy]):
        [tokens], [hit] = ask(llm, [asked])
        assert tokens == uncached[asked], f"step {step}"
        if step == 2:
            assert hit > 500, "a stock request must still find what the compressed one left behind"


@pytest.mark.parametrize("policy", POLICIES)
def test_stock_after_compressed(llm, uncached, policy):
    """What a compressed request publishes is the exact prefix, never its compacted cache."""
    llm.reset_prefix_cache()
    for asked in [policy, None, policy]:
        [tokens], _ = ask(llm, [asked])
        assert tokens == uncached[asked]


def test_all_at_once(llm, uncached):
    llm.reset_prefix_cache()
    asked = [None, *POLICIES, None]
    for _ in range(2):  # cold, then hitting
        tokens, _ = ask(llm, asked)
        assert tokens == [uncached[p] for p in asked]


def test_chunk_compacted_prompt_publishes_only_exact_blocks(llm, uncached):
    """With compaction between chunks, later chunks depend on the policy and must not be found by others."""
    llm.reset_prefix_cache()
    ask(llm, [{"name": "streaming", "budget": 100, "slack": 16, "prefill": "chunks"}])
    [tokens], [hit] = ask(llm, [None])
    assert tokens == uncached[None]
    assert hit <= 512  # the first chunk, computed before anything was dropped


def test_a_hit_leaves_the_queries_that_a_policy_wants(llm):
    llm.reset_prefix_cache()
    ask(llm, [None])
    for policy, window in (("snapkv:0.5", 32), ("scissorhands:0.5", 400), ("knorm:0.5", 0)):
        _, [hit] = ask(llm, [policy])
        assert 0 < hit <= len(PROMPT) - window


@pytest.mark.parametrize("policy", WHOLE)
def test_evidence_of_all_queries_takes_no_hit(llm, uncached, policy):
    """A hit would skip queries and change what is kept, so the prompt is computed; what it leaves is found again."""
    llm.reset_prefix_cache()
    ask(llm, [None])
    [tokens], [hit] = ask(llm, [policy])
    assert hit == 0
    assert tokens == uncached[policy]
    _, [hit] = ask(llm, [None])
    assert hit > 500


def test_no_secret_leaves_its_request(llm):
    """120 concurrent requests share a prefix and hold distinct secrets: each answers as it does alone."""
    shared = harness.tokens(96, seed=5)
    prompts = [shared + harness.tokens(150, seed=100 + i) for i in range(120)]
    each = [None, *({**policy, "budget": 80, "slack": 16} for policy in harness.policies(llm))]
    assert len(each) > 12
    policies = [each[i % len(each)] for i in range(120)]
    together = [harness.said(o)[0] for o in harness.generate(llm, prompts, policies, 12)]
    for start in range(0, 120, 24):  # five other batches, so that neighbours and blocks differ
        some = slice(start, start + 24)
        again = [harness.said(o)[0] for o in harness.generate(llm, prompts[some], policies[some], 12)]
        assert again == together[some]

"""Summary tokens in the paged engine against one float32 pass over text and summaries under the whole mask."""

import pytest
import torch

from models import MINI
from tests.engine import harness, reference, taught
from tests.engine.reference import summaries
from tests.engine.reference.summaries import expected_entries, ksa_logits

PURE, HYBRID = ["summary"] * 4, ["summary", "full", "summary", "summary"]
WINDOW, CHUNK = 4, taught.CHUNK
MIX = {id(PURE): 1.0, id(HYBRID): 0.7}
LENGTHS = [1, 7, 8, 31, 39, 40, 41, 47, 48, 160, 161, 167, 168, 300, 505]
GENERATE = 20


@pytest.fixture(scope="module")
def model():
    return reference.load(str(MINI))


@pytest.fixture(scope="module", params=[PURE, HYBRID], ids=["pure", "hybrid"])
def served(request, tmp_path_factory):
    """An engine whose prompts are read in chunks that fit neither chunks of text nor blocks."""
    folder = taught.model(tmp_path_factory.mktemp("ksa") / "model", request.param, WINDOW, mix=MIX[id(request.param)])
    groups = 1 if request.param is PURE else 4
    llm = harness.start(model=folder, blocks=groups * 256, max_num_batched_tokens=150, options={"groups": groups})
    yield llm, request.param
    harness.stop(llm)


def expected(model, kinds, prompt, said, window=WINDOW):
    """Log-probabilities (generated, vocabulary) by the reference, after the prompt and after each token said."""
    logits = ksa_logits(model, taught.parameters(), prompt + said[:-1], window, kinds, mix=MIX[id(kinds)])
    return torch.log_softmax(logits[len(prompt) - 1 :], dim=-1)


def agrees(model, kinds, prompt, output, window=WINDOW):
    said, logps = harness.said(output)
    wanted = expected(model, kinds, prompt, said, window)
    assert said == wanted.argmax(-1).tolist()
    found = wanted.gather(1, torch.tensor(said)[:, None])[:, 0]
    assert (found - torch.tensor(logps)).abs().max() < 1e-4


def read_at_once(llm, prompt, said):
    """Log-probabilities of what was said, when it is the end of a prompt."""
    sampling = harness.params("ksa", 1, prompt_logprobs=0)
    [whole] = llm.generate([{"prompt_token_ids": prompt + said}], [sampling], use_tqdm=False)
    return [step[token].logprob for step, token in zip(whole.prompt_logprobs[len(prompt) :], said, strict=True)]


@pytest.mark.parametrize("length", LENGTHS)
def test_same_as_reference(served, model, length):
    llm, kinds = served
    prompt = harness.tokens(length, seed=length)
    [output] = harness.generate(llm, [prompt], ["ksa"], GENERATE)
    agrees(model, kinds, prompt, output)
    record = harness.outcome(output)
    share = kinds.count("summary") / 4
    seen = length + GENERATE - 1
    assert record["logical_tokens"] == seen
    entries = share * expected_entries(seen, WINDOW) + (1 - share) * seen
    assert record["kept_tokens"] == pytest.approx(entries, abs=share * (CHUNK - 1) if seen % CHUNK == 0 else 0)


def test_largest_difference(served, model):
    """What 1e-4 above leaves room for: in float32 the two agree to about 1e-5."""
    llm, kinds = served
    prompt = harness.tokens(390, seed=9)
    [output] = harness.generate(llm, [prompt], ["ksa"], 1)
    said, logps = harness.said(output)
    assert abs(expected(model, kinds, prompt, said)[0, said[0]] - logps[0]) < 2e-5


def test_nothing_in_the_window_changes(served):
    """Up to (window + 1) chunks no summary is seen, and the engine does what it does without a policy."""
    llm, _ = served
    prompts = [harness.tokens(n, seed=n) for n in (1, 9, 30)]
    plain = harness.generate(llm, prompts, [None] * 3, 10)
    ours = harness.generate(llm, prompts, ["ksa"] * 3, 10)
    assert [harness.said(o) for o in ours] == [harness.said(o) for o in plain]
    assert [harness.outcome(o)["compactions"] for o in ours] == [0, 0, 0]


def test_read_or_generated_is_the_same(served):
    """What was generated one by one is worth what it is worth when it is read at once, at every length."""
    llm, _ = served
    prompt = harness.tokens(5, seed=5)
    [output] = harness.generate(llm, [prompt], ["ksa"], 90)
    said, logps = harness.said(output)
    read = read_at_once(llm, prompt, said)
    assert max(abs(a - b) for a, b in zip(logps, read, strict=True)) < 1e-5


@pytest.mark.parametrize("window", [1, 3, 40])
def test_a_window_of_ones_own(served, model, window):
    llm, kinds = served
    prompt = harness.tokens(203, seed=window)
    [output] = harness.generate(llm, [prompt], [{"name": "ksa", "window": window}], GENERATE)
    agrees(model, kinds, prompt, output, window)


def test_without_summaries(served, model, monkeypatch):
    """The baseline: what has left the window is not seen at all."""
    llm, kinds = served
    stock = summaries.visible

    def visible(tokens, *args):
        seen = stock(tokens, *args)
        seen[:tokens, tokens:] = False
        return seen

    prompt = harness.tokens(260, seed=21)
    policy = {"name": "ksa", "summaries": False}
    for more in ({}, {"prefill": "chunks"}):
        [output] = harness.generate(llm, [prompt], [{**policy, **more}], GENERATE)
        with monkeypatch.context() as patched:
            patched.setattr(summaries, "visible", visible)
            agrees(model, kinds, prompt, output)
        record = harness.outcome(output)
        share = kinds.count("summary") / 4
        assert record["kept_tokens"] == share * (4 * CHUNK + 279 % CHUNK) + (1 - share) * 279
        assert record["merged_tokens"] == 0


@pytest.mark.parametrize("cache", ["auto", "fp8_e4m3"])
def test_other_cache_types(tmp_path, cache):
    """Rounded to what the cache stores, what is read at once is worth about what was generated."""
    folder = taught.model(tmp_path / "model", HYBRID, WINDOW)
    more = {"dtype": "bfloat16", "kv_cache_dtype": cache}
    llm = harness.start(model=folder, blocks=1024, max_num_batched_tokens=150, options={"groups": 4}, **more)
    try:
        prompt = harness.tokens(30, seed=5)
        [output] = harness.generate(llm, [prompt], ["ksa"], 90)
        said, logps = harness.said(output)
        read = read_at_once(llm, prompt, said)
        assert sum(abs(a - b) for a, b in zip(logps, read, strict=True)) / 90 < 0.1
    finally:
        harness.stop(llm)


def test_neighbours_do_not_matter(served, model):
    """100 requests of ours and others' at once: each is answered as if it were alone, and all blocks come back."""
    llm, kinds = served
    before = harness.free_blocks(llm)
    prompts = [harness.tokens(20 + 4 * i, seed=i) for i in range(100)]
    policies = [["ksa", None, "streaming:0.3", "snapkv:64", {"name": "ksa", "window": 2}][i % 5] for i in range(100)]
    outputs = harness.generate(llm, prompts, policies, 12)
    for prompt, policy, output in zip(prompts, policies, outputs, strict=True):
        if policy == "ksa":
            agrees(model, kinds, prompt, output)
        elif isinstance(policy, dict):
            agrees(model, kinds, prompt, output, 2)
    harness.scheduler(llm).check_integrity()
    assert harness.free_blocks(llm) == before
    plain = [i for i, policy in enumerate(policies) if policy is None]
    alone = [harness.generate(llm, [prompts[i]], [None], 12)[0] for i in plain[:4]]
    assert [harness.said(outputs[i])[0] for i in plain[:4]] == [harness.said(o)[0] for o in alone]
    assert not len(harness.runner(llm).kv.observers[-1])  # the worker hears of an end with the next step


def test_a_prefix_is_shared_among_equals_only(served, model):
    """Text behind the window has other keys than under full attention, or with another window."""
    llm, kinds = served
    prompt = harness.tokens(400, seed=77)
    assert llm.reset_prefix_cache()
    hits = []
    for policy, window in [(None, 0), ("ksa", WINDOW), ("ksa", WINDOW), ({"name": "ksa", "window": 2}, 2), (None, 0)]:
        [output] = harness.generate(llm, [prompt], [policy], GENERATE, warm=True)
        hits.append(output.num_cached_tokens)
        if window:
            agrees(model, kinds, prompt, output, window)
    assert hits == [0, 0, 384, 0, 384]
    longer = prompt[:200] + harness.tokens(150, seed=78)
    [output] = harness.generate(llm, [longer], ["ksa"], GENERATE, warm=True)
    assert output.num_cached_tokens == 192
    agrees(model, kinds, longer, output)


def test_between_the_chunks_of_a_prompt(served, model):
    """Compacted while it is read, a prompt needs less room, and nothing else changes."""
    llm, kinds = served
    prompt = harness.tokens(700, seed=12)
    [output] = harness.generate(llm, [prompt], [{"name": "ksa", "prefill": "chunks"}], GENERATE)
    agrees(model, kinds, prompt, output)
    assert harness.outcome(output)["compactions"] > 4


def test_preempted_and_read_again(served, model):
    """On a pool that is too small for all, some begin again and must read what they had generated."""
    llm, kinds = served
    pool = harness.scheduler(llm).kv_cache_manager.block_pool
    assert llm.reset_prefix_cache()
    taken = pool.get_new_blocks(pool.get_num_free_blocks() - (44 if kinds is HYBRID else 9))
    preempted = []
    scheduler = harness.scheduler(llm)
    stock = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *args, **more: (
        preempted.append(request),
        stock(request, *args, **more),
    )
    try:
        prompts = [harness.tokens(30, seed=500 + i) for i in range(6)]
        outputs = harness.generate(llm, prompts, ["ksa"] * 6, 120, warm=True)
    finally:
        del scheduler._preempt_request
        pool.free_blocks(taken)
    assert preempted
    for prompt, output in zip(prompts, outputs, strict=True):
        agrees(model, kinds, prompt, output)

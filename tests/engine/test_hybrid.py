"""A model with sliding-window layers: only its full-attention layers are compacted, the others stay vLLM's."""

import pytest

from kvserve.engine.spec import CompressibleSpec
from tests.engine import harness, hybrids

PROMPTS = [harness.tokens(n, seed=n) for n in (90, 400, 700)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hybrids.windowed(tmp_path_factory.mktemp("hybrid"))


def test_hybrid(folder):
    settings = {"model": folder, "skip_tokenizer_init": True, "max_model_len": 1024, "blocks": 512}
    stock = harness.start(kv=False, **settings)
    expected = [harness.said(o) for o in harness.generate(stock, PROMPTS, [None] * 3)]
    harness.stop(stock)
    llm = harness.start(**settings)
    specs = [g.kv_cache_spec for g in harness.scheduler(llm).kv_cache_config.kv_cache_groups]
    assert sum(isinstance(s, CompressibleSpec) for s in specs) == 1
    assert len(specs) > 1
    before = harness.free_blocks(llm)
    assert [harness.said(o) for o in harness.generate(llm, PROMPTS, [None] * 3)] == expected
    outputs = harness.generate(llm, PROMPTS, [None, "scissorhands:100", "streaming:100"])
    assert harness.said(outputs[0])[0] == expected[0][0]
    assert [harness.outcome(o)["kept_tokens"] < 160 for o in outputs[1:]] == [True, True]
    assert {s.layer for s in harness.selections(llm)} == {0, 1}
    assert harness.free_blocks(llm) == before
    harness.stop(llm)

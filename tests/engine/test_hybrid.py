"""A model with sliding-window layers: only its full-attention layers are compacted, the others stay vLLM's."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from kvserve.spec import CompressibleSpec
from tests.engine import harness

PROMPTS = [harness.tokens(n, seed=n) for n in (90, 400, 700)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights: 4 layers with a window of 64 tokens, 2 with full attention."""
    config = Gemma3TextConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, sliding_window=64, max_position_embeddings=4096,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, query_pre_attn_scalar=32,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hybrid")
    Gemma3ForCausalLM(config).save_pretrained(path)
    return path


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

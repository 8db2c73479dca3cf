"""Models with other layers than full attention: what is compressed of them, and what is refused by name."""

import pytest
import torch
import transformers
from vllm.exceptions import VLLMValidationError

from kvserve.startup.guard import UnsupportedError
from tests.engine import harness, hybrids

SMALL = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 4, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
RECURRENT = {
    **SMALL, "head_dim": 128, "num_key_value_heads": 4, "linear_num_value_heads": 2, "linear_num_key_heads": 1,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64, "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
SHARING = {
    **SMALL, "head_dim": 32, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "sliding_window": 64,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 2048, "laurel_rank": 8, "altup_num_inputs": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3, "activation_sparsity_pattern": [0.0] * 6,
}  # fmt: skip


def start(folder, kind, fields, **settings):
    """A small model of a family, with random weights."""
    config = getattr(transformers, f"{kind}Config")(**fields)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return harness.start(
        **{"model": folder, "skip_tokenizer_init": True, "max_model_len": 1024, "blocks": 256, **settings}
    )


def test_nothing_to_compress(tmp_path):
    """A window in all layers: 400 for each policy but `full`."""
    llm = start(tmp_path, "Mistral", {**SMALL, "sliding_window": 64})
    [output] = harness.generate(llm, [harness.tokens(300)], ["full"], 5)
    assert len(harness.said(output)[0]) == 5
    for policy in ("snapkv:0.25", "streaming:4000", "random:0.5"):
        with pytest.raises(VLLMValidationError, match="has nothing to compress: no layer of this model"):
            harness.generate(llm, [harness.tokens(300)], [policy], 5)
    harness.stop(llm)


@pytest.mark.parametrize("fields", [{"budget": 0.25}, {"budget": 100, "granularity": "layer"}])
def test_budgets_by_layer_on_a_hybrid(tmp_path, fields):
    """The advice of the 400, --kv-groups with the number of layers that are compressed, can be followed."""
    folder = hybrids.windowed(tmp_path)
    settings = {"model": folder, "skip_tokenizer_init": True, "max_model_len": 1024, "blocks": 512}
    one = harness.start(**settings)
    with pytest.raises(VLLMValidationError, match=r"each of the 2 layers .* --kv-groups 2"):
        harness.generate(one, [harness.tokens(400)], [{"name": "pyramidkv", "granularity": "layer"}], 5)
    harness.stop(one)
    llm = harness.start(**settings, options={"groups": 2})
    names = ["pyramidkv", "prefixkv"]
    outputs = harness.generate(llm, [harness.tokens(400)] * 2, [{"name": name, **fields} for name in names], 40)
    assert [harness.outcome(output)["compactions"] > 0 for output in outputs] == [True, True]
    kept = {(s.req_id, s.layer): s.positions.shape[1] for s in harness.selections(llm)}
    assert len(set(kept.values())) > 1, "all layers have the same budget"
    harness.stop(llm)


def test_alibi_is_refused(tmp_path):
    fields = {k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads")}
    with pytest.raises(UnsupportedError, match="ALiBi"):
        start(tmp_path, "Bloom", {**fields, "n_layer": 4, "n_head": 4})


def test_windows_in_the_blocks_of_full_layers_are_refused(tmp_path):
    folder = hybrids.windowed(tmp_path)
    with pytest.raises(UnsupportedError, match="--disable-hybrid-kv-cache-manager"):
        harness.start(
            model=folder, skip_tokenizer_init=True, max_model_len=1024, blocks=512, disable_hybrid_kv_cache_manager=True
        )


def test_recurrent_state_at_a_shorter_hit(tmp_path):
    """A hit that is cut short needs the state at the cut, not the one at its end. In bfloat16, as the kernel wants."""
    llm = start(tmp_path, "Qwen3Next", RECURRENT, dtype="bfloat16")
    prefix = harness.tokens(900, seed=3)
    prompt = prefix + harness.tokens(40, seed=4)
    for policy in ["snapkv:0.5", "snapkv:4000", {"name": "keydiff", "budget": 0.5, "at": 256}]:
        [cold] = harness.generate(llm, [prompt], [policy], 3)
        harness.generate(llm, [prefix], [None], 4)
        for _ in range(2):
            [warm] = harness.generate(llm, [prompt], [policy], 3, warm=True)
            assert harness.said(warm)[0] == harness.said(cold)[0], policy
            pairs = zip(harness.said(warm)[1], harness.said(cold)[1], strict=True)
            assert max(abs(a - b) for a, b in pairs) < 2e-3, policy
        assert warm.num_cached_tokens > 0
    harness.stop(llm)


def test_a_cache_that_layers_share_is_compacted_once(tmp_path):
    """The last two layers read what the ones before have cached."""
    llm = start(tmp_path, "Gemma3nText", SHARING)
    assert harness.scheduler(llm).kv.facts.num_layers == 2
    prompts = [harness.tokens(400, seed=s) for s in (1, 2)]
    full = [harness.said(o)[0] for o in harness.generate(llm, prompts, [None, None])]
    same = [harness.said(o)[0] for o in harness.generate(llm, prompts, ["snapkv:4000", "streaming:4000"])]
    assert same == full
    outputs = harness.generate(llm, prompts, ["snapkv:100", "streaming:100"])
    assert [harness.outcome(o)["kept_tokens"] < 260 for o in outputs] == [True, True]
    moved = [(s.req_id, s.layer, s.logical) for s in harness.selections(llm)]
    assert len(moved) == len(set(moved)) > 0
    harness.stop(llm)

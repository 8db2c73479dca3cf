"""What positions do to the keys of each layer is found out from the loaded model, whatever code serves it."""

import pytest
import torch
import transformers

from kvserve.startup.facts import facts_of
from tests.engine import harness

SMALL = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 4, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HYBRID = {**SMALL, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2}
WITHOUT_GROUPS = {k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads")}
LONG = {
    "type": "longrope", "short_factor": [1.0 + i / 8 for i in range(16)],
    "long_factor": [2.0 + i for i in range(16)],
}  # fmt: skip
PHI3 = {**SMALL, "original_max_position_embeddings": 512, "rope_scaling": LONG}


def plain(bands: int, theta: float = 10_000.0) -> torch.Tensor:
    return theta ** -(torch.arange(bands, dtype=torch.float64) / bands)


def factors(name: str) -> torch.Tensor:
    return torch.tensor(LONG[name], dtype=torch.float64)


NONE = torch.zeros(0, dtype=torch.float64)
MODELS = {
    "llama": ("Llama", SMALL, {}, plain(16), True),
    "gptj": ("GPTJ", {**WITHOUT_GROUPS, "rotary_dim": 8}, {}, plain(4), False),
    "phi3, long text": ("Phi3", PHI3, {"max_model_len": 1024}, plain(16) / factors("long_factor"), True),
    "phi3, short text": ("Phi3", PHI3, {"max_model_len": 512}, plain(16) / factors("short_factor"), True),
    "cohere2": ("Cohere2", HYBRID, {}, NONE, True),
    "exaone4": ("Exaone4", HYBRID, {}, NONE, True),
    "gpt2": ("GPT2", WITHOUT_GROUPS, {}, NONE, True),
    "transformers": ("Llama", {**SMALL, "rope_theta": 5000.0}, {"model_impl": "transformers"}, plain(16, 5000.0), True),
    "transformers, interleaved": ("Cohere", SMALL, {"model_impl": "transformers"}, plain(16, 500_000.0), False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_rotation_of_each_layer(name, tmp_path):
    """And the policy that undoes rotations runs on it."""
    kind, fields, settings, inv_freq, neox = MODELS[name]
    llm = start(tmp_path, kind, fields, **settings)
    ropes = list(harness.runner(llm).kv_ropes.values())
    facts = facts_of(llm.llm_engine.vllm_config)
    assert len(ropes) == facts.num_layers == (2 if "layer_types" in fields else 4)
    for rope in ropes:
        torch.testing.assert_close(rope.inv_freq, inv_freq, rtol=1e-5, atol=0)
        assert rope.neox == neox
    assert facts.unrotated == (0 if len(inv_freq) else len(ropes))
    outputs = harness.generate(llm, [harness.tokens(300)], ["expected-attention:100"])
    assert harness.outcome(outputs[0])["kept_tokens"] < 160
    harness.stop(llm)


def start(folder, kind, fields, **settings):
    config = getattr(transformers, f"{kind}Config")(**fields)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return harness.start(
        **{"model": folder, "skip_tokenizer_init": True, "max_model_len": 1024, "blocks": 256, **settings}
    )

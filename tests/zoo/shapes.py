"""The table: which small models there are, what each one is there for, and what it is refused.

`family` names an entry of handbook.families, from which docs/models.md is made.
"""

from dataclasses import dataclass, field
from typing import Any

WINDOW = 64
"""Tokens that sliding-window layers see; every prompt of the zoo is longer."""

PLAIN: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.1, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
TIED = {"tie_word_embeddings": True}  # where vLLM has no head of its own
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}


@dataclass(frozen=True)
class Shape:
    """One small model."""

    name: str
    family: str
    model_type: str  # of transformers
    about: str  # what it is there for
    config: dict[str, Any] = field(default_factory=dict)  # on top of PLAIN
    full: tuple[int, ...] | None = None  # layers that are compressed; None: all
    engine: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # policy -> words of the reason; "*": every policy
    sample: bool = False  # in `make test`
    plain: bool = True  # whether PLAIN names the fields of its configuration
    rotation: bool = True  # whether the reference can say how queries to come are rotated
    reference: dict[str, Any] = field(default_factory=dict)  # where vLLM reads its configuration in another way
    tolerance: float = 1e-4  # of log-probabilities
    exact: bool = True  # whether vLLM itself says what transformers in float32 does, in chunks of any size

    @property
    def fields(self) -> dict[str, Any]:
        return {**(PLAIN if self.plain else {}), **self.config}


def rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def llama(name: str, about: str, /, **more: Any) -> Shape:
    shape = {key: more.pop(key) for key in ("sample", "engine", "family") if key in more}
    return Shape(name, shape.pop("family", "llama"), "llama", about, more, **shape)


NO_ROPE = {"expected-attention": "RoPE"}
ALIBI = {"*": "ALiBi"}

TABLE = [
    llama("llama-gqa", "grouped queries: two query heads share a KV head", sample=True),
    llama("llama-mha", "a KV head per query head", num_key_value_heads=4),
    llama("llama-mqa", "one KV head", num_key_value_heads=1),
    llama("llama-head64", "head size 64", head_dim=64),
    llama("llama-head80", "head size 80: no power of two", head_dim=80, sample=True),
    llama("llama-head96", "head size 96", head_dim=96),
    llama("llama-head128", "head size 128", head_dim=128),
    llama("llama-head256", "head size 256", head_dim=256),
    llama("rope-linear", "positions divided by a factor", **rope("linear", factor=2.0)),
    llama(
        "rope-yarn", "frequencies and size changed by YaRN",
        **rope("yarn", factor=4.0, original_max_position_embeddings=512),
    ),
    llama(
        "rope-llama3", "frequencies changed band by band",
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256),
    ),
    llama("transformers-llama", "vLLM's Transformers backend", engine={"model_impl": "transformers"},
          family="transformers", sample=True),
    Shape("qwen2", "qwen2", "qwen2", "biases on queries, keys and values"),
    Shape("qwen3", "qwen3", "qwen3", "queries and keys are normalised", {"head_dim": 32}),
    Shape("qwen3-moe", "qwen3", "qwen3_moe", "experts", {**MOE, "head_dim": 32}),
    Shape("mixtral", "mixtral", "mixtral", "experts", {"num_local_experts": 4, "num_experts_per_tok": 2,
                                                       "sliding_window": None}),
    Shape("olmoe", "olmo", "olmoe", "experts, normalised over all heads at once", MOE),
    Shape("gemma2", "gemma2", "gemma2", "soft-capped attention, windows in every second layer",
          {**MIXED, **TIED, "head_dim": 32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0},
          (1, 3), sample=True),
    Shape("gemma3", "gemma3", "gemma3_text", "windows in two of three layers, another rotation in each kind",
          {**TIED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "num_hidden_layers": 6,
           "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2}, (2, 5)),
    Shape("gpt-oss", "gpt-oss", "gpt_oss", "learned sinks, windows in every second layer, experts",
          {**MIXED, "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2}, (1, 3), sample=True),
    Shape("mistral-window", "mistral-window", "mistral", "windows in all layers: nothing to compress",
          {"sliding_window": WINDOW}, (), refused={"*": "nothing to compress"}),
    Shape("cohere", "cohere", "cohere", "interleaved rotation, a layer norm, scaled logits",
          {**TIED, "logit_scale": 0.3}, sample=True),
    Shape("cohere2", "cohere2", "cohere2", "full-attention layers that are not rotated",
          {**MIXED, **TIED, "logit_scale": 0.3}, (1, 3), reference={"sliding_window": WINDOW + 1}),
    Shape("exaone4", "exaone4", "exaone4", "full-attention layers that are not rotated, normalised queries and keys",
          {**MIXED, "head_dim": 32}, (1, 3)),
    Shape("phi3-longrope", "phi3", "phi3", "frequencies by length, fused projections",
          {"original_max_position_embeddings": 128, "num_key_value_heads": 2, "sliding_window": None,
           **rope("longrope", short_factor=[1.0] * 16, long_factor=[1.0 + i / 4 for i in range(16)],
                  original_max_position_embeddings=128)}),
    Shape("phi-partial", "phi", "phi", "half of the channels are rotated", rope("default", partial_rotary_factor=0.5),
          rotation=False),
    Shape("glm-partial", "glm", "glm", "half of the channels are rotated, interleaved",
          {"head_dim": 32, **rope("default", partial_rotary_factor=0.5)}),
    Shape("llama4", "llama4", "llama4_text", "layers without rotation beside chunked ones, experts",
          {"num_hidden_layers": 4, "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 1,
           "intermediate_size_mlp": 192, "attention_chunk_size": 64, "interleave_moe_layer_step": 2,
           "no_rope_layers": [1, 0, 1, 0]}, (1, 3), rotation=False),
    Shape("gpt2", "gpt2", "gpt2", "positions are embedded, not rotated",
          {"vocab_size": 2048, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 2048, "initializer_range": 0.1,
           "bos_token_id": 1, "eos_token_id": 2}, plain=False, rotation=False),
    Shape("opt", "opt", "opt", "positions are embedded, not rotated",
          {"vocab_size": 2048, "hidden_size": 128, "ffn_dim": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
           "max_position_embeddings": 2048, "init_std": 0.1, "word_embed_proj_dim": 128}, plain=False, rotation=False),
    Shape("bloom", "alibi", "bloom", "attention falls off with distance (ALiBi)",
          {"vocab_size": 2048, "hidden_size": 128, "n_layer": 3, "n_head": 4, "initializer_range": 0.1}, plain=False,
          refused=ALIBI),
    Shape("falcon", "falcon", "falcon", "multi-query, attention and MLP side by side",
          {"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False,
           "initializer_range": 0.1, "max_position_embeddings": 2048}, plain=False),
    Shape("falcon-alibi", "alibi", "falcon", "attention falls off with distance (ALiBi)",
          {"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True,
           "multi_query": False, "parallel_attn": False, "bias": True, "initializer_range": 0.1,
           "max_position_embeddings": 2048}, plain=False, refused=ALIBI),
    Shape("gptj", "gptj", "gptj", "a part of the channels is rotated, interleaved",
          {"vocab_size": 2048, "n_embd": 128, "n_layer": 3, "n_head": 4, "rotary_dim": 16, "n_positions": 2048,
           "initializer_range": 0.1, "tie_word_embeddings": False}, plain=False, rotation=False),
    Shape("qwen3-next", "qwen3-next", "qwen3_next", "a recurrent state in three of four layers, gated attention",
          {"num_hidden_layers": 4, "head_dim": 128, "num_key_value_heads": 4, "linear_num_key_heads": 1,
           "linear_num_value_heads": 2, "linear_key_head_dim": 128, "linear_value_head_dim": 128, **MOE,
           "shared_expert_intermediate_size": 96},
          (3,), engine={"dtype": "bfloat16"}, sample=True, tolerance=0.05, exact=False),
]  # fmt: skip

SHAPES = {shape.name: shape for shape in TABLE}

"""Small models with random weights whose layers differ in what they hold of the past."""

from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

WINDOW = 64


def windowed(path: Path) -> Path:
    """Write a model with 4 layers that see a window of 64 tokens, and 2 with full attention."""
    config = Gemma3TextConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, sliding_window=WINDOW, max_position_embeddings=4096,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, query_pre_attn_scalar=32,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(path)
    return path

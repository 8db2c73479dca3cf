"""Draft models for the embedded one."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models import MINI


def eagle3(folder: Path) -> dict[str, Any]:
    """An EAGLE-3 head of one layer that nobody trained, over `mini`: what it drafts is mostly wrong."""
    config = json.loads((MINI / "config.json").read_text(encoding="utf-8"))
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes = {
        "fc.weight": (hidden, 3 * hidden),
        "midlayer.self_attn.q_proj.weight": (queries, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, queries),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
    }
    norms = ["midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm", "norm"]
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    weights |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    weights["lm_head.weight"] = load_file(MINI / "model.safetensors")["model.embed_tokens.weight"].float()
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    own = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1}
    own |= {"draft_vocab_size": config["vocab_size"], "tie_word_embeddings": False}
    own["eagle_aux_hidden_state_layer_ids"] = [1, 2, 3]
    (folder / "config.json").write_text(json.dumps(config | own), encoding="utf-8")
    return {"method": "eagle3", "model": str(folder), "num_speculative_tokens": 3}

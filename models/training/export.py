"""Write a checkpoint as a model folder that stock transformers and stock vLLM load."""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from models import MINI
from models.tasks.tokens import ASSISTANT, BOS, CHAT_TEMPLATE, EOS, PAD, SPECIALS, USER
from models.training.family import FAMILY
from models.training.network import NetworkShape

NAMES = {
    "embedding.": "model.embed_tokens.",
    "blocks.": "model.layers.",
    "norm.": "model.norm.",
    "head.": "lm_head.",
    ".attention.q.": ".self_attn.q_proj.",
    ".attention.k.": ".self_attn.k_proj.",
    ".attention.v.": ".self_attn.v_proj.",
    ".attention.o.": ".self_attn.o_proj.",
    ".attention.q_norm.": ".self_attn.q_norm.",
    ".attention.k_norm.": ".self_attn.k_norm.",
    ".attention_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".gate.": ".mlp.gate_proj.",
    ".up.": ".mlp.up_proj.",
    ".down.": ".mlp.down_proj.",
}


def export(weights: dict[str, Tensor], shape: NetworkShape, tokenizer: Tokenizer, folder: Path = MINI) -> None:
    """Replace the model files in ``folder``; each file appears whole, never half written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        new = Path(scratch)
        renamed = {hf_name(name): weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
        if shape.bias:
            renamed |= _zero_biases(shape)
        save_file(renamed, new / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(new / "tokenizer.json"))
        _write(new / "config.json", _config(shape))
        _write(new / "tokenizer_config.json", _tokenizer_config(shape))
        _write(new / "generation_config.json", _generation_config())
        for file in sorted(new.iterdir()):
            file.chmod(0o644)
            os.replace(file, folder / file.name)


def _zero_biases(shape: NetworkShape) -> dict[str, Tensor]:
    """What ``attention_bias`` means besides queries and keys: transformers reads these two, vLLM the first."""
    sizes = {"v_proj": shape.kv_heads * shape.head_dim, "o_proj": shape.width}
    return {
        f"model.layers.{layer}.self_attn.{name}.bias": torch.zeros(size, dtype=torch.bfloat16)
        for layer in range(shape.layers)
        for name, size in sizes.items()
    }


def hf_name(name: str) -> str:
    """The name that transformers gives a weight of the network."""
    for ours, theirs in NAMES.items():
        if ours.startswith("."):
            name = name.replace(ours, theirs)
        elif name.startswith(ours):
            name = theirs + name.removeprefix(ours)
    return name


def _config(shape: NetworkShape) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": shape.epsilon,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "tie_word_embeddings": True,
        "attention_bias": shape.bias,
        "attention_dropout": 0.0,
        "use_cache": True,
        "initializer_range": 0.02,
        **_ids(),
    }


def _tokenizer_config(shape: NetworkShape) -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "model_max_length": shape.max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _generation_config() -> dict:
    return {"do_sample": False, **_ids()}


def _ids() -> dict[str, int]:
    return {f"{name}_token_id": SPECIALS.index(token) for name, token in (("pad", PAD), ("bos", BOS), ("eos", EOS))}


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.export", description=__doc__)
    parser.add_argument("model", nargs="?", choices=sorted(FAMILY), default="mini")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint (default: models/.work/MODEL)")
    parser.add_argument("--to", type=Path, help="model folder to write (default: models/MODEL)")
    args = parser.parse_args()
    member = FAMILY[args.model]
    work, folder = args.work or member.work, args.to or member.folder
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    export(state["average"], member.shape, Tokenizer.from_file(str(work / "tokenizer.json")), folder)
    print(f"wrote {folder}, {(folder / 'model.safetensors').stat().st_size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()

"""A model of random weights whose KV cache is large for its size, so that attention is what costs."""

import json
from pathlib import Path

from bench.sizes import BenchSizes

VOCABULARY = 2048
HEAD = 128


def configure(
    folder: Path, layers: int, heads: int, hidden: int, head: int = HEAD, group: int = 1, inner: int | None = None
) -> Path:
    """Write the Qwen3 configuration of such a model; vLLM makes up the weights (load_format="dummy").

    heads: KV heads, each with `group` query heads; inner: width of the MLP, twice `hidden` if not given.
    """
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": inner or 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": group * heads,
        "num_key_value_heads": heads,
        "head_dim": head,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def heavy(folder: Path, sizes: BenchSizes) -> Path:
    """The model that is timed."""
    return configure(folder / "heavy", sizes.layers, sizes.heads, sizes.hidden)


def tiny(folder: Path) -> Path:
    """Some layers that cost next to nothing: what is left is the time that Python takes."""
    return configure(folder / "tiny", layers=4, heads=1, hidden=64, head=32)


def light(folder: Path) -> Path:
    """The smallest one, for what does not depend on speed: how many requests a pool holds."""
    return configure(folder / "light", layers=1, heads=1, hidden=64, head=32)

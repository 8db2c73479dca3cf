"""The default size of the KV cache on a CPU. vLLM's own default is nearly all memory there is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

GIB = 1 << 30
REQUESTS = 4
"""Requests of full length that the default has room for."""
SHARE = 0.5
"""Of the memory that is free beside the weights, what the default takes at most."""
LEAST = GIB // 4
FLAGS = "--kv-cache-memory-bytes, or VLLM_CPU_KVCACHE_SPACE in GiB,"

_BYTES = {"float32": 4, "float": 4}  # others are stored in 16 bits, those of a quantised cache in 8


class Need(NamedTuple):
    """What one server asks of the machine, in bytes."""

    weights: int  # 0 where they are not on this disk yet
    request: int  # KV cache of one request of full length


def need(model: str, config: Mapping[str, Any], length: int | None, dtype: str = "auto", cache: str = "auto") -> Need:
    """config: the model's configuration file, its text part; length: --max-model-len, None for the model's own."""
    tokens = length or int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)
    return Need(_weights(Path(model)), tokens * token_bytes(config, dtype, cache))


def token_bytes(config: Mapping[str, Any], dtype: str = "auto", cache: str = "auto") -> int:
    """Keys and values of one token; layers with a window or a state hold little of a long text and do not count."""
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    width = config.get("hidden_size") or config.get("n_embd") or 0
    size = config.get("head_dim") or width // heads
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
    if kinds := config.get("layer_types"):
        layers = sum(kind == "full_attention" for kind in kinds)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "") if dtype == "auto" else dtype
    each = 1 if cache.startswith(("fp8", "int8")) else _BYTES.get(stored, 2)
    return int(2 * layers * (config.get("num_key_value_heads") or heads) * size * each)


def _weights(folder: Path) -> int:
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else []
    return sum(file.stat().st_size for file in files)


def free() -> int:
    """Bytes of memory that no process uses."""
    return int(psutil.virtual_memory().available)


def most(found: Need, available: int, engines: int = 1) -> int:
    """The largest default for one engine or worker, in bytes."""
    return int((available - found.weights) * SHARE / engines)


def default(found: Need, available: int, engines: int = 1) -> int:
    """Bytes of the cache: room for a few requests of full length, but at most `most`."""
    return max(min(max(REQUESTS * found.request, LEAST), most(found, available, engines)), 0)


def shown(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"

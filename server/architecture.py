"""What kvserve can compress of a model, from its configuration file alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvserve.guard import ALIBI, BIASED
from server import embedded
from server.finding import Finding

CPU_BLOCK = 128
"""Tokens per block that vLLM uses on CPU."""


def model_findings(name: str | None) -> Iterator[Finding]:
    path = name or embedded.folder()
    if path is None:
        yield Finding(False, "model", "this installation has no embedded model; name one")
        return
    try:
        config = _config(str(path))
    except Exception as error:  # network, permissions, malformed files
        yield Finding(False, "model", f"cannot read the configuration of {path}: {error}")
        return
    yield Finding(True, "model", f"{path}: {', '.join(config.get('architectures') or ['unknown architecture'])}")
    yield from _attention({**config, **config.get("text_config", {})})


def _config(name: str) -> dict[str, Any]:
    local = Path(name) / "config.json"
    if local.is_file():
        return dict(json.loads(local.read_text(encoding="utf-8")))
    from transformers import AutoConfig

    return dict(AutoConfig.from_pretrained(name).to_dict())


def _attention(config: dict[str, Any]) -> Iterator[Finding]:
    heads = config.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else None)
    layers = config.get("num_hidden_layers")
    yield Finding(None, "attention", f"{layers} layers, {kv_heads} KV heads, head size {size}")
    for reason in refusals(config):
        yield Finding(False, "attention", reason)
    if layers and (kinds := config.get("layer_types")):
        full = sum(kind == "full_attention" for kind in kinds)
        if full < len(kinds):
            yield Finding(None, "attention", f"{full} of {len(kinds)} layers have full attention; only these shrink")
    if size:
        yield from _layout(int(size))


def refusals(config: dict[str, Any]) -> Iterator[str]:
    """Why the engine would refuse this model."""
    kinds = config.get("layer_types") or []
    if config.get("kv_lora_rank"):
        yield "multi-head latent attention (MLA): one latent per token, not keys and values"
    if config.get("alibi") or config.get("model_type") in ALIBI:
        yield BIASED
    if config.get("is_encoder_decoder"):
        yield "encoder-decoder model: cross attention has no token to evict"
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    if windowed and not any(kind == "full_attention" for kind in kinds):
        yield f"sliding window of {config['sliding_window']} tokens in all layers: nothing to compress"
    if kinds and not any(kind == "full_attention" for kind in kinds):
        yield "no layer with full attention: nothing to compress"


def _layout(head_size: int) -> Iterator[Finding]:
    """On CPU, whether we can read the cache that vLLM's kernel writes for this head size."""
    import torch

    if torch.cuda.is_available():
        return
    try:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        from kvserve.layout import cpu_packings
    except ImportError as error:
        yield Finding(None, "CPU layout", f"not examined: {error}")
        return
    for dtype in (torch.bfloat16, torch.float32):
        yield _probed(_get_attn_isa, cpu_packings, dtype, head_size)


def _probed(isa_of: Callable[..., str], packings: Callable[..., Any], dtype: Any, head_size: int) -> Finding:
    subject = f"{str(dtype).removeprefix('torch.')} cache, head size {head_size}"
    try:
        isa = isa_of(dtype, CPU_BLOCK, head_size)
        keys, _, values, _ = packings(isa, dtype, "auto", CPU_BLOCK, head_size)
    except Exception as error:  # kernels refuse sizes in their own ways
        return Finding(False, "CPU layout", f"{subject}: {error}")
    return Finding(True, "CPU layout", f"{subject}, {isa} kernel: keys in {keys}, values in {values}")

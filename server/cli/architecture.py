"""What kvserve can compress of a model, from its configuration file alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvserve.startup.refusals import described, reasons, useless
from models.fetch import located
from models.fetchable import MODELS, is_fetched
from server.cli import embedded, memory
from server.cli.report_line import Finding

CPU_BLOCK = 128
"""Tokens per block that vLLM uses on CPU."""


def model_findings(name: str | None) -> Iterator[Finding]:
    if name in MODELS and not is_fetched(MODELS[name]) and not Path(name).is_dir():
        yield Finding(False, "model", f"{name} is not fetched; `kvserve models {name}` does that")
        return
    path = located(name) if name else embedded.folder()
    if path is None:
        yield Finding(False, "model", "this installation has no embedded model; name one")
        return
    try:
        config = configuration(str(path))
    except Exception as error:  # network, permissions, malformed files
        yield Finding(False, "model", f"cannot read the configuration of {path}: {error}")
        return
    yield Finding(True, "model", f"{path}: {', '.join(config.get('architectures') or ['unknown architecture'])}")
    yield from _attention(config)
    yield from _memory(str(path), config)


def configuration(name: str) -> dict[str, Any]:
    """What a model's configuration file says, its text part on top. Raises what reading it raises."""
    local = Path(name) / "config.json"
    if local.is_file():
        found = dict(json.loads(local.read_text(encoding="utf-8")))
    else:
        from transformers import AutoConfig

        found = dict(AutoConfig.from_pretrained(name).to_dict())
    return {**found, **(found.get("text_config") or {})}


def _memory(name: str, config: dict[str, Any]) -> Iterator[Finding]:
    """On CPU, whether the weights and the cache that `kvserve serve` takes by default fit beside what others use."""
    import torch

    if torch.cuda.is_available():
        return
    found, available = memory.need(name, config, None), memory.free()
    text = (
        f"{memory.shown(available)} free; weights {memory.shown(found.weights)}, "
        f"KV cache of one request of full length {memory.shown(found.request)}"
    )
    if found.weights >= available:
        yield Finding(False, "memory", f"{text}: the weights do not fit")
    elif found.request > memory.most(found, available):
        yield Finding(False, "memory", f"{text}: start with a smaller --max-model-len, or with {memory.FLAGS} larger")
    else:
        yield Finding(True, "memory", text)


def _attention(config: dict[str, Any]) -> Iterator[Finding]:
    heads = config.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else None)
    layers = config.get("num_hidden_layers")
    yield Finding(None, "attention", f"{layers} layers, {kv_heads} KV heads, head size {size}")
    start = described(config)
    for reason in (*reasons(start), *useless(start)):
        yield Finding(False, "attention", reason)
    if layers and (kinds := config.get("layer_types")):
        full = sum(kind == "full_attention" for kind in kinds)
        if full < len(kinds):
            yield Finding(None, "attention", f"{full} of {len(kinds)} layers have full attention; only these shrink")
    if size:
        yield from _layout(int(size))


def _layout(head_size: int) -> Iterator[Finding]:
    """On CPU, whether we can read the cache that vLLM's kernel writes for this head size."""
    import torch

    if torch.cuda.is_available():
        return
    try:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        from kvserve.cache.layout import cpu_layouts
    except ImportError as error:
        yield Finding(None, "CPU layout", f"not examined: {error}")
        return
    for dtype in (torch.bfloat16, torch.float32):
        yield _probed(_get_attn_isa, cpu_layouts, dtype, head_size)


def _probed(isa_of: Callable[..., str], layouts: Callable[..., Any], dtype: Any, head_size: int) -> Finding:
    subject = f"{str(dtype).removeprefix('torch.')} cache, head size {head_size}"
    try:
        isa = isa_of(dtype, CPU_BLOCK, head_size)
        keys, values = layouts(isa, dtype, "auto", CPU_BLOCK, head_size)
    except Exception as error:  # kernels refuse sizes in their own ways
        return Finding(False, "CPU layout", f"{subject}: {error}")
    return Finding(True, "CPU layout", f"{subject}, {isa} kernel: keys in {keys.name}, values in {values.name}")

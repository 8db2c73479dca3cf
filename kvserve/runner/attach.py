"""Finding the compressible layers of a model that vLLM has loaded, and the memory of their caches."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import KVCacheSpec

from kvserve.cache.contents import LayerCache, cpu_cache, gpu_cache
from kvserve.cache.layout import cpu_layouts
from kvserve.cache.records import NO_DRAFTS, Drafts
from kvserve.engine.spec import compressible, is_compressible
from kvserve.evidence.calibration import load_for
from kvserve.evidence.observer import OF_MODELS, Layer, Observer
from kvserve.evidence.output import output_weight
from kvserve.evidence.repeat import Repeater
from kvserve.policy.softmax import Softmax
from kvserve.startup.facts import drafts_of
from kvserve.startup.guard import UnsupportedError
from kvserve.startup.refusals import BIASED, PROMPTS_IN_GRAPHS, UNIFIED, prompts_in_graphs

FP8 = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def groups_of(runner: Any) -> dict[int, list[str]]:
    """Names of the compressible layers by KV-cache group.

    A layer that reads the cache of another one is not one of them: that memory is compacted once.
    """
    attention = get_layers_from_vllm_config(runner.vllm_config, Attention)
    shared = {name for name, module in attention.items() if module.kv_sharing_target_layer_name}
    return {
        g: [name for name in group.layer_names if name not in shared]
        for g, group in enumerate(runner.kv_cache_config.kv_cache_groups)
        if is_compressible(group.kv_cache_spec)
    }


def layers_of(runner: Any) -> list[tuple[Layer, Any]]:
    """The compressible layers of a model runner with their attention modules, in model order."""
    attention = get_layers_from_vllm_config(runner.vllm_config, Attention)
    group_of = {name: g for g, names in groups_of(runner).items() for name in names}
    calibration = load_for(runner.vllm_config)
    found = []
    for index, name in enumerate((name for name in attention if name in group_of), runner.kv_stages.first):
        module = attention[name]
        layer = Layer(
            index=index,
            group=group_of[name],
            cache=_cache(runner, module, group_of[name]),
            num_kv_heads=module.num_kv_heads,
            softmax=_softmax(module.impl),
            rope=runner.kv_ropes.get(name),
            calibration=calibration.layer(index, _query_heads(runner, module), runner.device) if calibration else None,
            output_weight=partial(output_weight, runner.kv_projections.get(name), module, runner.dtype, runner.device),
        )
        found.append((layer, module))
    return found


def drafting_layers(runner: Any) -> set[str]:
    """Names of the layers that a draft model brings. Their cache keeps every token, in a group of its own.

    What they keep has no part in what the model says, and vLLM's drafting finds it by a token's position.
    """
    drafter = getattr(runner, "drafter", None) or getattr(runner, "speculator", None)
    names = getattr(drafter, "_draft_attn_layer_names", None) or getattr(drafter, "draft_attn_layer_names", None)
    return set(names or ())


def drafts(runner: Any) -> Drafts:
    """What speculative decoding leaves open of a step."""
    tokens = drafts_of(runner.vllm_config)
    if not tokens:
        return NO_DRAFTS
    buffers = getattr(runner, "input_buffers", runner)  # V2 has them apart
    unseen = tokens if runner.vllm_config.scheduler_config.async_scheduling else 0
    return Drafts(tokens, unseen, buffers.positions)


def refuse(runner: Any, specs: Mapping[str, KVCacheSpec]) -> None:
    """Raise UnsupportedError for what only the loaded model tells: see kvserve.startup.refusals."""
    ours = [name for name, spec in specs.items() if compressible(spec) and name not in drafting_layers(runner)]
    attention = get_layers_from_vllm_config(runner.vllm_config, Attention)
    if any(getattr(attention[name].impl, "alibi_slopes", None) is not None for name in ours):
        raise UnsupportedError(f"kvserve does not support {BIASED}")
    if runner.vllm_config.scheduler_config.disable_hybrid_kv_cache_manager and 0 < len(ours) < len(specs):
        raise UnsupportedError(f"kvserve does not support {UNIFIED}")


def observers(runner: Any, attached: list[tuple[Layer, Any]]) -> list[Observer]:
    """What needs the model itself, and what it brings: see kvserve.startup.plugin. Raises UnsupportedError."""
    made = [make(runner, attached, head_offset(runner)) for make in OF_MODELS]
    return [Repeater(runner, attached), *(observer for observer in made if observer is not None)]


def captured_tokens(runner: Any) -> int:
    """How many tokens a step may have that is replayed as one CUDA graph, attention included; 0 if none is.

    Raises UnsupportedError if vLLM has come to put prompts into them.
    """
    config = runner.vllm_config.compilation_config
    if runner.device.type != "cpu" and prompts_in_graphs(config):
        raise UnsupportedError(f"kvserve does not support {PROMPTS_IN_GRAPHS}")
    if runner.device.type == "cpu" or config.cudagraph_mode is None or not config.cudagraph_mode.has_full_cudagraphs():
        return 0
    return int(config.max_cudagraph_capture_size or 0)


def staging(runner: Any, module: Any, tokens: int) -> Tensor | None:
    """Where captured steps of up to `tokens` tokens leave a layer's queries, (tokens, Hq, D)."""
    if not tokens:
        return None
    return torch.zeros(tokens, module.num_heads, module.head_size, dtype=runner.dtype, device=runner.device)


def head_offset(runner: Any) -> int:
    """Index of this rank's first KV head in the model."""
    parallel = runner.vllm_config.parallel_config
    rank = parallel.rank % parallel.tensor_parallel_size
    return int(rank * runner.model_config.get_total_num_kv_heads() // parallel.tensor_parallel_size)


def _query_heads(runner: Any, module: Any) -> slice:
    """This rank's query heads among those of the model."""
    first = head_offset(runner) * (module.num_heads // module.num_kv_heads)
    return slice(first, first + module.num_heads)


def _softmax(impl: Any) -> Softmax:
    """What this layer's kernel does with the products of queries and keys."""
    sinks = getattr(impl, "sinks", None)
    return Softmax(
        scale=float(impl.scale),
        cap=float(getattr(impl, "logits_soft_cap", None) or 0.0),
        sinks=None if sinks is None else sinks.detach().float(),
    )


def _cache(runner: Any, module: Any, group: int) -> LayerCache:
    """The view of one layer's cache that fits this platform's kernels."""
    cache, cache_dtype = module.kv_cache, str(runner.vllm_config.cache_config.cache_dtype)
    fp8 = FP8.get(cache_dtype)
    scales = (module._k_scale_float, module._v_scale_float)
    size = runner.kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size
    if cache.shape[2] != size:
        raise UnsupportedError(
            f"the attention kernel splits blocks of {size} tokens into {cache.shape[2]}; "
            f"start with --block-size {cache.shape[2]}"
        )
    if runner.device.type != "cpu":
        if cache.shape[3] != 2 * module.head_size:
            raise UnsupportedError(f"KV cache dtype {cache_dtype!r} stores more than keys and values with a token")
        return gpu_cache(cache, module.head_size, scales, fp8)
    layouts = cpu_layouts(module.isa, runner.dtype, cache_dtype, cache.shape[2], cache.shape[3] // 2)
    return cpu_cache(cache, layouts, scales, fp8)

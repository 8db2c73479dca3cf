"""Finding the compressible layers of a model that vLLM has loaded, and the memory of their caches."""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention

from kvserve import summary_file
from kvserve.calibration import load_for
from kvserve.gather import Layer
from kvserve.guard import UnsupportedError
from kvserve.ropes import rope_of
from kvserve.slots import Slots, cpu_slots, gpu_slots
from kvserve.spec import is_compressible
from kvserve.summaries import SummaryMaker
from kvserve.summary_layer import layers_of as summary_layers

FP8 = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def groups_of(runner: Any) -> dict[int, list[str]]:
    """Names of the compressible layers by KV-cache group."""
    return {
        g: group.layer_names
        for g, group in enumerate(runner.kv_cache_config.kv_cache_groups)
        if is_compressible(group.kv_cache_spec)
    }


def layers_of(runner: Any) -> list[tuple[Layer, Any]]:
    """The compressible layers of a model runner with their attention modules, in model order."""
    attention = get_layers_from_vllm_config(runner.vllm_config, Attention)
    group_of = {name: g for g, names in groups_of(runner).items() for name in names}
    calibration = load_for(runner.vllm_config)
    found = []
    for index, name in enumerate(name for name in attention if name in group_of):
        module = attention[name]
        layer = Layer(
            index=index,
            group=group_of[name],
            slots=_slots(runner, module, group_of[name]),
            num_kv_heads=module.num_kv_heads,
            scale=module.impl.scale,
            rope=rope_of(runner.model, name, runner.device),
            calibration=calibration.layer(index, _query_heads(runner, module), runner.device) if calibration else None,
        )
        found.append((layer, module))
    return found


def rope_problem(runner: Any, names: Sequence[str]) -> str | None:
    """Why the rotation of one of these layers cannot be undone; None if all can."""
    unknown = [name for name in names if rope_of(runner.model, name, runner.device) is None]
    return f"the rotation of layer {unknown[0]!r} cannot be read off this model" if unknown else None


def summary_maker(runner: Any, attached: list[tuple[Layer, Any]]) -> SummaryMaker | None:
    """What computes this model's summary tokens; None if it was taught none. Raises UnsupportedError."""
    file = summary_file.load_for(runner.vllm_config)
    if file is None:
        return None
    layers = [layer for layer, _ in attached]
    if len(layers) != len(file.about.layers):
        raise UnsupportedError("summary tokens: models with layers of sliding-window attention are not supported")
    names = [module.layer_name.rpartition(".self_attn")[0] for _, module in attached]
    blocks = [runner.model.get_submodule(name) for name in names]
    tensors = {name: tensor.to(runner.dtype) for name, tensor in file.tensors().items()}
    made = summary_layers(tensors, file.mix, blocks, layers, head_offset(runner), runner.device)
    return SummaryMaker(file.about, tensors["embedding"].to(runner.device), made)


def head_offset(runner: Any) -> int:
    """Index of this rank's first KV head in the model."""
    parallel = runner.vllm_config.parallel_config
    rank = parallel.rank % parallel.tensor_parallel_size
    return int(rank * runner.model_config.get_total_num_kv_heads() // parallel.tensor_parallel_size)


def _query_heads(runner: Any, module: Any) -> slice:
    """This rank's query heads among those of the model."""
    first = head_offset(runner) * (module.num_heads // module.num_kv_heads)
    return slice(first, first + module.num_heads)


def _slots(runner: Any, module: Any, group: int) -> Slots:
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
        return gpu_slots(cache, module.head_size, scales, fp8)
    from kvserve.layout import cpu_packings

    _, keys, _, values = cpu_packings(module.isa, runner.dtype, cache_dtype, cache.shape[2], cache.shape[3] // 2)
    return cpu_slots(cache, (keys, values), scales, fp8)

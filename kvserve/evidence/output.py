"""The output projection of each layer: what turns the values that its attention has read into what it adds.

Which module of the model that is, is seen in the trial pass: the one that is given what attention put out. What it
does is asked of the module itself, with unit vectors, since its weight may be packed or quantised.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import LinearBase


@contextmanager
def takers(model: Any, outputs: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Name of an attention layer -> the linear module that is given its output, filled while the model runs.

    outputs: what attention layers have put out so far. It must be kept, so that no other tensor lies in its place.
    """
    found: dict[str, Any] = {}

    def seen(module: Any, args: tuple[Any, ...]) -> None:
        for name, output in outputs.items():
            if args[:1] and args[0].data_ptr() == output.data_ptr() and args[0].numel() == output.numel():
                found[name] = module

    hooks = [m.register_forward_pre_hook(seen) for m in model.modules() if isinstance(m, LinearBase)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def output_weight(projection: Any, attention: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(H, G, D, hidden) float32 of this worker's heads: what a head has read, times its part, is what it adds."""
    kv, heads, size = attention.num_kv_heads, attention.num_heads, attention.head_size_v
    units = torch.eye(heads * size, dtype=dtype, device=device)
    with torch.inference_mode():
        made: Tensor = projection.quant_method.apply(projection, units, None)  # without the sum over workers
    return made.float().view(kv, heads // kv, size, -1)

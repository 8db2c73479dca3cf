"""A trial pass at start-up: what positions do to the keys of each layer of the loaded model.

The model's code is asked, not its configuration: layers may own a rotation and not use it, or share one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention

from kvserve.evidence.side_pass import whole_pass

POSITIONS = (0, 1, 3, 10, 40, 150, 600)


def positions_of(runner: Any) -> Tensor:
    """Those that fit the model and a batch of this server. (n,) int64 on the model's device."""
    fitting = [p for p in POSITIONS if p < runner.max_model_len][: runner.max_num_tokens]
    return torch.tensor(fitting, device=runner.device)


def keys_by_position(runner: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """The keys that these attention layers would cache of one token at each of `positions_of`: (n, H, D) float32.

    Attention itself is left out, its output taken for zero: so every layer gets the same input at each position,
    unless the model adds positions to its embeddings.
    """
    attention = get_layers_from_vllm_config(runner.vllm_config, Attention)
    found: dict[str, Tensor] = {}
    at = positions_of(runner)
    token = torch.full_like(at, runner.model_config.get_vocab_size() // 3, dtype=runner.input_ids.gpu.dtype)
    whole_pass(runner, token, at, {module: _noting(name, module, found) for name, module in attention.items()})
    return {name: found[name].float() for name in names if name in found}


def _noting(name: str, module: Any, found: dict[str, Tensor]) -> Any:
    def forward(query: Tensor, key: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        if key is not None:
            found[name] = key.reshape(-1, module.num_kv_heads, module.head_size)
        return query.new_zeros(query.shape[0], module.num_heads * module.head_size_v)

    return forward

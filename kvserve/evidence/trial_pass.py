"""A trial pass at start-up: what positions do to the keys of each layer, and which module takes what it puts out.

The model's code is asked, not its configuration: layers may own a rotation and not use it, or share one.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention

from kvserve.evidence.output import takers
from kvserve.evidence.side_pass import whole_pass

logger = logging.getLogger(__name__)

POSITIONS = (0, 1, 3, 10, 40, 150, 600)


def positions_of(runner: Any) -> Tensor:
    """Those that fit the model and a batch of this server. (n,) int64 on the model's device."""
    fitting = [p for p in POSITIONS if p < runner.max_model_len][: runner.max_num_tokens]
    return torch.tensor(fitting, device=runner.device)


class Trial(NamedTuple):
    """What was seen of these attention layers, as far as it was seen."""

    keys: dict[str, Tensor]  # (n, H, D) float32: what they would cache of one token at each of `positions_of`
    projections: dict[str, Any]  # the linear module that is given what a layer puts out


def tried(runner: Any, names: Sequence[str]) -> Trial:
    """One token at each of `positions_of`, through all layers.

    Attention itself is left out, its output taken for zero: so every layer gets the same input at each position,
    unless the model adds positions to its embeddings.
    """
    if not names:
        return Trial({}, {})
    try:
        return _tried(runner, names)
    except Exception:  # the model's code, on input of ours: a server without some policies is better than none
        logger.exception("kvserve could not find out what this model's layers do")
        return Trial({}, {})


def _tried(runner: Any, names: Sequence[str]) -> Trial:
    attention = get_layers_from_vllm_config(runner.vllm_config, Attention)
    found: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    at = positions_of(runner)
    token = torch.full_like(at, runner.model_config.get_vocab_size() // 3, dtype=torch.int32)
    forwards = {module: _noting(name, module, found, outputs) for name, module in attention.items()}
    with takers(runner.model, outputs) as projections:
        whole_pass(runner, token, at, forwards)
    return Trial({name: found[name].float() for name in names if name in found}, projections)


def _noting(name: str, module: Any, found: dict[str, Tensor], outputs: dict[str, Tensor]) -> Any:
    def forward(query: Tensor, key: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        if key is not None:
            found[name] = key.reshape(-1, module.num_kv_heads, module.head_size)
        outputs[name] = query.new_zeros(query.shape[0], module.num_heads * module.head_size_v)
        return outputs[name]

    return forward

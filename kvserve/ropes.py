"""Reading off the served model how its attention layers rotate queries and keys."""

from typing import Any

import torch
from torch import Tensor

from kvserve.rope import Rope


def rope_of(model: Any, attention: str, device: torch.device) -> Rope | None:
    """The rotation of the attention layer of this name; None if its block has no plain rotary embedding."""
    block, _, _ = attention.rpartition(".")
    try:
        module = model.get_submodule(block).rotary_emb
    except AttributeError:
        return None
    if getattr(module, "mrope_section", None):
        return None
    cos, sin = module._compute_cos_sin_cache()[:2].double().cpu().chunk(2, dim=-1)  # positions 0 and 1
    rough = torch.atan2(sin[1], cos[1])
    return Rope(
        inv_freq=_exact(module, rough).to(device),
        factor=float(cos[0, 0]),
        neox=bool(module.is_neox_style),
    )


def _exact(module: Any, rough: Tensor) -> Tensor:
    """The module's own frequencies where they fit what it turns by, else those read off its table. (R,) float64."""
    try:
        own: Tensor = module._compute_inv_freq(module.base).double().cpu()
    except (AttributeError, TypeError):
        return rough
    return own if own.shape == rough.shape and torch.allclose(own, rough, rtol=1e-4, atol=1e-9) else rough

"""Finding out how the served model rotates queries and keys, layer by layer.

The rotations that a model owns are read off its modules; which of them a layer uses, if any, is seen from what
positions did to its keys in a trial pass (kvserve.evidence.trial_pass).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kvserve.evidence.trial_pass import positions_of
from kvserve.policy.rope import UNROTATED, Rope

TOLERANCE = {torch.float32: 2e-3}
LOW_PRECISION = 4e-2  # tables of sines in 16 bits, as vLLM keeps them


def ropes_of(runner: Any, keys: Mapping[str, Tensor]) -> dict[str, Rope]:
    """How layers rotate queries and keys, by their keys in the trial pass; left out: where that cannot be found out."""
    at, known = positions_of(runner), rotations(runner.model, runner.device)
    found = {name: rotation(keys[name], at, known, runner.model_config.dtype) for name in keys}
    return {name: rope for name, rope in found.items() if rope is not None}


def rotations(model: Any, device: torch.device) -> list[Rope]:
    """All rotations that modules of this model can do, on the device."""
    found = [rope for module in model.modules() for read in (_of_vllm, _of_transformers) for rope in read(module)]
    unique = {(rope.inv_freq.numpy().tobytes(), rope.factor, rope.neox): rope for rope in found}
    return [Rope(rope.inv_freq.to(device), rope.factor, rope.neox) for rope in unique.values()]


def rotation(keys: Tensor, positions: Tensor, known: list[Rope], dtype: torch.dtype) -> Rope | None:
    """What explains the keys (n, H, D) of one token at these positions (n,), the first being 0; None if nothing does.

    Keys that do not change are not rotated. Where a model has no rotation and keys change in length too, positions
    came in with the embeddings: they are not rotated either.
    """
    fitting = [rope for rope in (UNROTATED, *known) if rope.rotated <= keys.shape[-1]]
    errors = [_difference(rope.turned(keys[:1].expand_as(keys), positions), keys) for rope in fitting]
    enough = TOLERANCE.get(dtype, LOW_PRECISION)
    error, best = min(zip(errors, fitting, strict=True), key=lambda pair: pair[0])
    if error < enough:
        return best
    lengths = keys.norm(dim=-1)
    stretched = float(((lengths - lengths[:1]).abs() / lengths[:1]).max()) > enough
    return UNROTATED if not known and stretched else None


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest relative difference at any position; infinite where there is nothing to compare."""
    size = other.flatten(1).norm(dim=-1)
    error = float(((one - other).flatten(1).norm(dim=-1) / size).max())
    return error if error == error else float("inf")


def _of_vllm(module: Any) -> Iterator[Rope]:
    """vLLM's rotary embeddings; longrope has two, by the longest text that the server takes."""
    table = getattr(module, "_compute_cos_sin_cache", None)
    if table is None:
        return
    if hasattr(module, "long_short_cos_sin_cache"):
        for factors, scale in ((module.short_factor, module.short_mscale), (module.long_factor, module.long_mscale)):
            yield Rope(module._compute_inv_freq(factors).double().cpu(), float(scale))
        return
    if (read := _first_rows(table)) is not None:
        cos, sin = read
        rough = torch.atan2(sin[1], cos[1])
        yield Rope(_exact(module, rough), float(cos[0, 0]), bool(module.is_neox_style))


def _first_rows(table: Callable[[], Tensor]) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines at positions 0 and 1, (2, R) float64; None for a module that keeps no such table."""
    try:
        cos, sin = table()[:2].double().cpu().chunk(2, dim=-1)
    except (AttributeError, TypeError, ValueError):
        return None
    return cos, sin


def _exact(module: Any, rough: Tensor) -> Tensor:
    """The module's own frequencies where they fit what it turns by, else those read off its table. (R,) float64."""
    try:
        own: Tensor = module._compute_inv_freq(module.base).double().cpu()
    except (AttributeError, TypeError):
        return rough
    return own if own.shape == rough.shape and torch.allclose(own, rough, rtol=1e-4, atol=1e-9) else rough


def _of_transformers(module: Any) -> Iterator[Rope]:
    """Rotary embeddings of models that vLLM serves through transformers: one for each kind of layer."""
    for name, buffer in module.named_buffers(recurse=False):
        kind, _, rest = name.rpartition("inv_freq")
        if rest or "original" in kind or buffer.dtype != torch.float32 or _changing(module, kind):
            continue
        factor = float(getattr(module, f"{kind}attention_scaling", 1.0))
        for neox in (True, False):
            yield Rope(buffer.double().cpu(), factor, neox)


def _changing(module: Any, kind: str) -> bool:
    """Whether frequencies depend on the longest text of a batch, so that none of them is the rotation."""
    of_kind = getattr(module, "rope_type", "default")
    name = of_kind.get(kind.rstrip("_"), "default") if isinstance(of_kind, dict) else of_kind
    return "dynamic" in str(name) or name == "longrope"

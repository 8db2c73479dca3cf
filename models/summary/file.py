"""Write and read the summary parameters of a model folder: ``kvserve/summary.safetensors``, beside its weights.

The server has a reader of its own (``kvserve.summary.file``, where the format is described); this one is for training.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvserve.evidence.calibration import config_hash
from kvserve.summary.file import BESIDE, FORMAT
from models.summary.network import RowLayout
from models.training.network import NetworkShape

__all__ = ["BESIDE", "FORMAT", "SummaryFileError", "check", "hash_of", "load", "save", "shapes"]


class SummaryFileError(ValueError):
    """The file is not one of summary parameters, or not of this model."""


def save(
    path: Path,
    tensors: Mapping[str, Tensor],
    folder: Path,
    layout: RowLayout,
    mix: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write the parameters of the model in ``folder`` in its ``dtype``; the file appears whole, never half written."""
    metadata = {
        "format": FORMAT,
        "config": hash_of(folder),
        "model": folder.resolve().name,
        "chunk": str(layout.chunk),
        "window": str(layout.window),
        "layers": json.dumps(list(layout.kinds)),
        "mix": str(mix),
        **(about or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
    partial.chmod(0o644)
    os.replace(partial, path)


def load(path: Path, folder: Path, shape: NetworkShape) -> tuple[dict[str, Tensor], RowLayout, float]:
    """Tensors in float32, layout and mixture for the model in ``folder``. Raises SummaryFileError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SummaryFileError(f"{path} cannot be read: {error}") from None
    if metadata.get("format") != FORMAT:
        raise SummaryFileError(f"{path} is no file of summary parameters: format {metadata.get('format')!r}")
    if metadata.get("config") != hash_of(folder):
        raise SummaryFileError(f"{path} was made for another model ({metadata.get('model', 'unnamed')})")
    check(tensors, shape, str(path))
    try:
        layout = RowLayout(tuple(json.loads(metadata["layers"])), int(metadata["window"]), int(metadata["chunk"]))
        mix = float(metadata["mix"])
    except (KeyError, ValueError) as error:
        raise SummaryFileError(f"{path} does not say what it holds: {error!r}") from None
    if len(layout.kinds) != shape.layers:
        raise SummaryFileError(f"{path} names {len(layout.kinds)} layers; the model has {shape.layers}")
    return tensors, layout, mix


def check(tensors: Mapping[str, Tensor], shape: NetworkShape, source: str) -> None:
    """Raises SummaryFileError for a missing or unknown tensor, or one of the wrong shape."""
    wanted = shapes(shape)
    for name, size in wanted.items():
        if name not in tensors:
            raise SummaryFileError(f"{source} has no tensor {name}")
        if tuple(tensors[name].shape) != size:
            raise SummaryFileError(f"{source}: {name} has shape {tuple(tensors[name].shape)}; the model needs {size}")
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        raise SummaryFileError(f"{source} has the unknown tensor {unknown[0]}")


def shapes(shape: NetworkShape) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor that a model needs."""
    rows = {
        "q_proj": shape.heads * shape.head_dim,
        "k_proj": shape.kv_heads * shape.head_dim,
        "v_proj": shape.kv_heads * shape.head_dim,
    }
    layers = {f"layers.{i}.{name}": (size, shape.width) for i in range(shape.layers) for name, size in rows.items()}
    return {"embedding": (1, shape.width), **layers}


def hash_of(folder: Path) -> str:
    """What ties a file to the model of a folder, the same as for calibrations."""
    from transformers import AutoConfig

    return config_hash(AutoConfig.from_pretrained(folder))

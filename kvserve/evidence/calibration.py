"""The calibration file: what some policies must know of a model before the first request.

One safetensors file, made by `kvserve calibrate`, bound to its model by a hash of the configuration.
Tensors, for L compressible layers, Hq query heads, R rotary bands and K budgets:

    q_real, q_imag, q_abs   (L, Hq, R) float32   E[q_f] and E[|q_f|] of the queries before RoPE (TriAttention)
    budgets                 (K,) float32         kept fractions, ascending (PrefixKV)
    keep_share              (L, K) float32       what each layer keeps of a prompt at these budgets
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvserve.startup.guard import UnsupportedError
from kvserve.startup.options import KVOptions

FORMAT = "kvserve-calibration-1"
BESIDE = "kvserve/calibration.safetensors"
"""Found there in the model's folder without being named; at its top, vLLM would take it for weights."""

PARTS = {"queries": ("q_real", "q_imag", "q_abs"), "prefixkv": ("budgets", "keep_share")}

_BINDING = (
    "model_type hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size "
    "vocab_size attention_bias partial_rotary_factor rope_theta rope_scaling rope_parameters"
).split()
"""Fields of a model's configuration that say what its queries look like; others differ between library versions."""


def config_hash(hf_config: Any) -> str:
    """SHA-256 of what a model's configuration says of its attention."""
    text = hf_config.get_text_config() if hasattr(hf_config, "get_text_config") else hf_config
    fields = {name: getattr(text, name, None) for name in _BINDING}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Calibration:
    """A file that has been read and belongs to the served model."""

    tensors: Mapping[str, Tensor]

    @property
    def parts(self) -> tuple[str, ...]:
        """Which statistics it has: "queries", "prefixkv"."""
        return tuple(part for part, names in PARTS.items() if all(name in self.tensors for name in names))

    def layer(self, index: int, heads: slice, device: torch.device) -> dict[str, Tensor]:
        """What a policy sees of one layer; `heads`: this worker's query heads."""
        found: dict[str, Tensor] = {}
        if "queries" in self.parts:
            real, imag, moduli = (self.tensors[name][index, heads].to(device) for name in PARTS["queries"])
            found |= {"q_mean": torch.complex(real, imag), "q_abs": moduli}
        if "prefixkv" in self.parts:
            found |= {"budgets": self.tensors["budgets"].to(device)}
            found |= {"keep_share": self.tensors["keep_share"][index].to(device)}
        return found


def save(path: Path, tensors: Mapping[str, Tensor], hf_config: Any, about: Mapping[str, str]) -> None:
    """Write a calibration file; `about` is for people (model, corpus, tokens)."""
    metadata = {"format": FORMAT, "config": config_hash(hf_config), **about}
    partial = path.with_name(path.name + ".part")  # an interrupted run leaves no half file under the name
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
    partial.chmod(0o644)
    partial.replace(path)


@lru_cache(maxsize=4)
def load(path: Path, digest: str) -> Calibration:
    """Read a file for the model with this `config_hash`, once.

    Raises UnsupportedError if it is missing, not ours, or another model's.
    """
    if not path.is_file():
        raise UnsupportedError(f"the calibration file {path} does not exist; make it with `kvserve calibrate`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UnsupportedError(f"the calibration file {path} cannot be read: {error}") from None
    if metadata.get("format") != FORMAT:
        raise UnsupportedError(f"{path} is not a calibration file of kvserve: format {metadata.get('format')!r}")
    if metadata.get("config") != digest:
        raise UnsupportedError(
            f"the calibration file {path} was made for another model ({metadata.get('model', 'unnamed')}); "
            "make one for this model with `kvserve calibrate`"
        )
    return Calibration(tensors)


def path_of(vllm_config: Any) -> Path | None:
    """The file that a server uses: the one named at start-up, else the one in the model's folder."""
    named = KVOptions.of(vllm_config).calibration
    if named is not None:
        return Path(named)
    beside = Path(str(vllm_config.model_config.model)) / BESIDE
    return beside if beside.is_file() else None


def load_for(vllm_config: Any) -> Calibration | None:
    """The calibration of a server, None if it has none. Raises UnsupportedError for a wrong file."""
    path = path_of(vllm_config)
    if path is None:
        return None
    return load(path, config_hash(vllm_config.model_config.hf_config))

"""The summary file: what a model was taught about summary tokens (KSA), beside its ordinary weights.

One safetensors file, made by `kvserve train-summary` or converted from a published checkpoint, bound to its model by a
hash of the configuration. Tensors, for hidden size d, Hq query and H KV heads of D channels:

    embedding                 (1, d)         the summary token, which has no id: it can be neither read nor sampled
    layers.{i}.q_proj         (Hq * D, d)    projections of summary rows in layer i; all else is shared with text
    layers.{i}.k_proj, v_proj (H * D, d)

Metadata: format, config (see kvserve.evidence.calibration), chunk, window, layers (JSON list of "summary" or "full"),
mix (the share m of these projections in m * summary + (1 - m) * text, behind the norms of queries and keys).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvserve.evidence.calibration import config_hash
from kvserve.policy.types import Summaries
from kvserve.startup.guard import UnsupportedError

FORMAT = "kvserve-summary/1"
BESIDE = "kvserve/summary.safetensors"
KINDS = ("summary", "full")


@dataclass(frozen=True)
class SummaryFile:
    """A file that belongs to the served model; its tensors are read when they are asked for."""

    path: Path
    about: Summaries
    mix: float

    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@lru_cache(maxsize=4)
def load(path: Path, digest: str, num_layers: int) -> SummaryFile:
    """The file for a model with this `config_hash` and number of layers, once. Raises UnsupportedError."""
    metadata = _metadata(path)
    if metadata.get("config") != digest:
        raise UnsupportedError(
            f"the summary file {path} was made for another model ({metadata.get('model', 'unnamed')}); "
            "make one for this model with `kvserve train-summary`, or move it away"
        )
    about = _about(path, metadata)
    if about.chunk < 2 or about.window < 1 or len(about.layers) != num_layers or set(about.layers) - set(KINDS):
        raise UnsupportedError(f"the summary file {path} does not fit a model of {num_layers} layers: {about}")
    return SummaryFile(path, about, float(metadata.get("mix", "1")))


def about(path: Path) -> Summaries:
    """What a file says, whatever model it belongs to. Raises UnsupportedError."""
    return _about(path, _metadata(path))


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UnsupportedError(f"the summary file {path} cannot be read: {error}") from None
    if metadata.get("format") != FORMAT:
        raise UnsupportedError(f"{path} is not a summary file of kvserve: format {metadata.get('format')!r}")
    return metadata


def _about(path: Path, metadata: Mapping[str, str]) -> Summaries:
    try:
        float(metadata.get("mix", "1"))
        return Summaries(int(metadata["chunk"]), int(metadata["window"]), tuple(json.loads(metadata["layers"])))
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedError(f"the summary file {path} does not say what it holds: {error!r}") from None


def load_for(vllm_config: Any) -> SummaryFile | None:
    """The file in the folder of a server's model, None if there is none. Raises UnsupportedError for a wrong one."""
    path = Path(str(vllm_config.model_config.model)) / BESIDE
    if not path.is_file():
        return None
    config = vllm_config.model_config.hf_config
    return load(path, config_hash(config), vllm_config.model_config.get_total_num_hidden_layers())


def about_for(vllm_config: Any) -> Summaries | None:
    """What a server's model was taught about summary tokens."""
    found = load_for(vllm_config)
    return found.about if found else None

"""Read a Qwen3 model folder into the network that is trained here."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.training.export import hf_name
from models.training.network import Network, NetworkShape


class ReadingError(ValueError):
    """The folder holds no model that this network can be."""


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``. Raises ReadingError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ReadingError(f"{folder} is no model folder: {error.strerror}: config.json") from None
    except ValueError as error:
        raise ReadingError(f"{folder / 'config.json'} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ReadingError(f"{folder / 'config.json'} must hold an object")
    return config


def shape_of(config: dict[str, Any]) -> NetworkShape:
    """The sizes in a Qwen3 configuration. Raises ReadingError for what the network does not have."""
    if config.get("model_type") != "qwen3":
        raise ReadingError(f"model_type is {config.get('model_type')!r}; allowed: 'qwen3'")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ReadingError(f"rope_type is {kind!r}; allowed: 'default'")
    if config.get("use_sliding_window"):
        raise ReadingError("use_sliding_window is true; allowed: false")
    if config.get("attention_bias"):
        raise ReadingError("attention_bias is true; allowed: false")
    try:
        return NetworkShape(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            hidden=config["intermediate_size"],
            theta=rope.get("rope_theta", config.get("rope_theta", 1e4)),
            max_positions=config.get("max_position_embeddings", 32768),
            epsilon=config.get("rms_norm_eps", 1e-6),
        )
    except KeyError as error:
        raise ReadingError(f"config.json has no {error}") from None


def read_network(folder: Path, dtype: torch.dtype | None = None) -> Network:
    """The model of a folder, in ``dtype`` or as stored. Raises ReadingError."""
    config = read_config(folder)
    with torch.device("meta"):
        network = Network(shape_of(config), tied=bool(config.get("tie_word_embeddings")))
    shards, weights = Shards(folder), {}
    for name, weight in network.state_dict().items():
        stored = shards.get(hf_name(name))
        if stored.shape != weight.shape:
            raise ReadingError(f"{hf_name(name)} has shape {[*stored.shape]}; config.json says {[*weight.shape]}")
        weights[name] = stored.to(dtype) if dtype else stored
    network.load_state_dict(weights, assign=True)
    return network


class Shards:
    """The tensors of all safetensors files of a folder, each read when it is asked for. Raises ReadingError."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, dict[str, Path]()
        for path in sorted(folder.glob("*.safetensors")):
            with _opened(path) as file:
                self.files |= dict.fromkeys(file.keys(), path)
        if not self.files:
            raise ReadingError(f"{folder} has no *.safetensors file")

    def get(self, name: str) -> Tensor:
        if name not in self.files:
            raise ReadingError(f"{self.folder} has no weight {name}")
        with _opened(self.files[name]) as file:
            return file.get_tensor(name)


def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ReadingError(f"{path} cannot be read: {error}") from None

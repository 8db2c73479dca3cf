"""The embedded model with summary parameters that nobody trained: no use, but they must be computed with exactly."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from kvserve.calibration import config_hash
from kvserve.summary_file import BESIDE, FORMAT
from models import MINI

CHUNK = 8


def parameters(seed: int = 0) -> dict[str, torch.Tensor]:
    """The text's own projections and an embedding, each with noise of half its size."""
    weights = load_file(MINI / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    found = {"embedding": weights["model.embed_tokens.weight"][300:301].float()}
    for layer in range(4):
        for name in ("q_proj", "k_proj", "v_proj"):
            found[f"layers.{layer}.{name}"] = weights[f"model.layers.{layer}.self_attn.{name}.weight"].float()
    noisy = {n: w + 0.5 * w.std() * torch.randn(w.shape, generator=generator) for n, w in found.items()}
    return {name: weight.to(torch.bfloat16).float() for name, weight in noisy.items()}


def model(folder: Path, kinds: list[str], window: int = 4, **metadata: str) -> Path:
    """A folder with the embedded model and such parameters."""
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("summary.safetensors"))
    (folder / BESIDE).parent.mkdir(exist_ok=True)
    about = {
        "format": FORMAT, "config": config_hash(AutoConfig.from_pretrained(MINI)), "model": "test", "chunk": str(CHUNK),
        "window": str(window), "layers": json.dumps(kinds), "mix": "1.0", **metadata,
    }  # fmt: skip
    save_file({n: w.to(torch.bfloat16) for n, w in parameters().items()}, folder / BESIDE, metadata=about)
    return folder

"""The embedded model with summary parameters that nobody trained: no use, but they must be computed with exactly."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from models import MINI
from models.summary.file import BESIDE, save
from models.summary.network import RowLayout

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


def model(folder: Path, kinds: list[str], window: int = 4, mix: float = 1.0) -> Path:
    """A folder with the embedded model and such parameters."""
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("summary.safetensors"))
    save(folder / BESIDE, parameters(), folder, RowLayout(tuple(kinds), window, CHUNK), mix)
    return folder

"""The upper bracket: keep what the tokens to come will attend to, as found out before."""

import os
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from kvserve.policy import LayerView, ScoringPolicy

FOLDER = "KVSERVE_EVALS_ORACLE"


class OraclePolicy(ScoringPolicy):
    """Keep sinks, recent tokens, and those that the rest of the item, right answer included, attends to most.

    The attention is that of the full cache, summed over all later queries and averaged over the query heads of a KV
    head. It comes from a file that `kvserve eval` has written. Not a bound: what a model attends to most without
    compression need not be what helps it most with it.
    """

    name: ClassVar[str] = "oracle"
    item: str = Field("", pattern=r"^[a-z0-9_-]*$", description="Whose attention")

    def scores(self, view: LayerView) -> Tensor:
        path = Path(os.environ[FOLDER]) / f"{self.item}.safetensors"
        moments, mass = _mass(path, path.stat().st_mtime_ns)
        known = int((moments <= view.logical).sum()) - 1
        heads = mass[max(known, 0), view.layer][view.head_offset : view.head_offset + view.num_heads]
        scores = torch.zeros(view.positions.shape, dtype=torch.float32)  # what comes after the item's end has none
        inside = view.positions < heads.shape[1]
        scores[inside] = heads.gather(1, view.positions.clamp(max=heads.shape[1] - 1))[inside]
        return scores


@lru_cache(maxsize=256)
def _mass(path: Path, _written: int) -> tuple[Tensor, Tensor]:
    """Moments (M,), and for each (L, H, n) float32: attention from the tokens after it."""
    found = load_file(path)
    return found["moments"], found["mass"].float()

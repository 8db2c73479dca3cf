"""Looking at a model through its engine for calibration: query statistics, and attention mass of whole prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvserve.evidence.gather import Gathered
from kvserve.policy import LayerView


@dataclass
class Probe:
    """Sums over all prompts of a calibration, on one worker. Shapes: L layers, Hq local query heads, R bands."""

    count: int = 0
    total: Tensor | None = None  # (L, Hq, R) complex64: sum of the queries' bands before RoPE
    moduli: Tensor | None = None  # (L, Hq, R) float32: sum of their moduli
    mass: list[Tensor] = field(default_factory=list)  # per prompt (L, n) float32: mean over all heads

    def sample(self, views: Sequence[LayerView], gathered: Gathered) -> None:
        """Add one complete prompt; `views` are those of all layers."""
        self.mass.append(torch.stack([view.over_heads(view.mass.mean(-1)) for view in views]).cpu())
        bands = [gathered.layers[view.layer].bands for view in views]
        found = [part for part in bands if part is not None]
        if not found:
            return
        total = torch.stack([part[1] for part in found]).cpu()
        moduli = torch.stack([part[2] for part in found]).cpu()
        self.total = total if self.total is None else self.total + total
        self.moduli = moduli if self.moduli is None else self.moduli + moduli
        self.count += found[0][0]

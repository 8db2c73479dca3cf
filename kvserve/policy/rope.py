"""Rotary position embedding as the served model applies it: rotating back, and its frequencies."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Rotation of one layer's queries and keys: R bands, 0 or more; the first 2 * R of D channels are rotated.

    inv_freq: (R,) float64, radians per token after any scaling (llama3, YaRN, linear, ...).
    factor: what cos and sin are multiplied with (YaRN's attention factor), else 1.
    neox: bands pair channels f and f + R; otherwise 2f and 2f + 1 (GPT-J).
    """

    inv_freq: Tensor
    factor: float = 1.0
    neox: bool = True

    @property
    def rotated(self) -> int:
        """Channels that are rotated."""
        return 2 * len(self.inv_freq)

    def bands(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., R) complex64: the rotated channels, one complex number per band."""
        part, half = x[..., : self.rotated].float(), len(self.inv_freq)
        if self.neox:
            real, imag = part[..., :half], part[..., half:]
        else:
            real, imag = part[..., 0::2], part[..., 1::2]
        return torch.complex(real.contiguous(), imag.contiguous())

    def channels(self, bands: Tensor, x: Tensor) -> Tensor:
        """The inverse of `bands`: (..., R) complex -> (..., D), channels that are not rotated taken from x."""
        if self.neox:
            part = torch.cat([bands.real, bands.imag], dim=-1)
        else:
            part = torch.stack([bands.real, bands.imag], dim=-1).flatten(-2)
        return torch.cat([part, x[..., self.rotated :].float()], dim=-1)

    def phases(self, positions: Tensor) -> Tensor:
        """(...,) integer positions -> (..., R) complex64 unit numbers e^(i * position * inv_freq), via float64."""
        angle = positions.double()[..., None] * self.inv_freq.to(positions.device)
        return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

    def undo(self, x: Tensor, positions: Tensor) -> Tensor:
        """Post-RoPE (n, ..., D) at positions (n,) -> pre-RoPE float32: exact up to rounding."""
        return self._times(x, self.phases(positions).conj() / self.factor)

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """(n, ..., D) as rotated for position 0 -> float32 as rotated for positions (n,)."""
        return self._times(x, self.phases(positions))

    def _times(self, x: Tensor, turn: Tensor) -> Tensor:
        turn = turn.view(len(turn), *(1,) * (x.dim() - 2), turn.shape[-1])
        return self.channels(self.bands(x) * turn, x)


UNROTATED = Rope(torch.zeros(0, dtype=torch.float64))
"""What positions do to a layer without RoPE."""

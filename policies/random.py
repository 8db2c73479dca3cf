"""The second control: forget at random."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import LayerView, ScoringPolicy


class Random(ScoringPolicy):
    """Keep sinks, recent tokens and a random sample of the rest, drawn per layer and KV head.

    A token's draw is a hash of (seed, layer, KV head, position), so it does not depend on when the
    policy acts, on the neighbours in the batch, or on tensor parallelism.
    """

    name: ClassVar[str] = "random"
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the draw")

    def scores(self, view: LayerView) -> Tensor:
        heads = torch.arange(view.num_heads, device=view.positions.device) + view.head_offset
        stream = _mix(torch.tensor(self.seed * 1_000_003 + view.layer) + _mix(heads))
        return _mix(view.positions + stream[:, None]).to(torch.float32)


def _mix(x: Tensor) -> Tensor:
    """A 31-bit avalanche hash of int64 values (multiply-xorshift), in [0, 2^24): exact in float32."""
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0x7FFFFFFF
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    return (x ^ (x >> 14)) & 0xFFFFFF

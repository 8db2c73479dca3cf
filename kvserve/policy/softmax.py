"""How a layer of the served model turns products of queries and keys into attention."""

from typing import NamedTuple

import torch
from torch import Tensor


class Softmax(NamedTuple):
    """Scale, soft cap and sinks of one layer."""

    scale: float = 1.0
    cap: float = 0.0  # a logit x becomes cap * tanh(x / cap), as in Gemma 2; 0: it stays
    sinks: Tensor | None = None  # (H * G,) float32: in each query head's softmax a logit of no slot (gpt-oss)

    def logits(self, products: Tensor) -> Tensor:
        """(...) q . k -> (...), in place."""
        scaled = products.mul_(self.scale)
        return scaled.div_(self.cap).tanh_().mul_(self.cap) if self.cap else scaled

    def probabilities(self, logits: Tensor, heads: slice) -> Tensor:
        """(G, W, n) logits of these query heads -> their attention on the slots; rows sum to less than 1 with sinks."""
        if self.sinks is None:
            return torch.softmax(logits, dim=-1)
        sinks = self.sinks[heads, None, None].expand(-1, logits.shape[1], 1)
        return torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]

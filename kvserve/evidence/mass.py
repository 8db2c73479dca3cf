"""Attention mass: what each slot received from all queries so far, without an n x n matrix.

colsum[hq, i] = sum over queries q of softmax(cap(scale * q . K))[i]: the accumulated scores of H2O, Elastic
Cache and PrefixKV. The kernels of attention do not hand out probabilities, so they are computed once
more, tile by tile. On CUDA by a Triton kernel (`kvserve.evidence.mass_triton`), elsewhere by torch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 64  # queries at a time: TILE * G rows of logits stay in a core's second-level cache


class Softmax(NamedTuple):
    """How a layer of the served model turns products of queries and keys into attention."""

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


def column_sums(queries: Tensor, keys: Tensor, softmax: Softmax, first: int, stride: int = 1) -> Tensor:
    """Causal attention of some queries on all slots, summed over the queries.

    queries: (W, H * G, D); keys: (H, n, D) float32, slots in order of age; query w is that of slot
    first + w * stride and sees the slots up to it; returns (H, G, n) float32.
    """
    if queries.is_cuda:
        from kvserve.evidence.mass_triton import column_sums as on_gpu

        return on_gpu(queries.float().contiguous(), keys.contiguous(), softmax, first, stride)
    return _tiled(queries.float(), keys, softmax, first, stride)


def _tiled(queries: Tensor, keys: Tensor, softmax: Softmax, first: int, stride: int) -> Tensor:
    heads, slots, width = keys.shape
    scale = 1.0 if softmax.cap else softmax.scale  # where nothing comes in between, it costs no pass of its own
    count, group = len(queries), queries.shape[1] // heads
    sums = keys.new_zeros(heads, group, slots)
    by_head = queries.view(count, heads, group, width).permute(1, 2, 0, 3)
    at = first + stride * torch.arange(count)
    for start in range(0, count, TILE):
        end = min(count, start + TILE)
        young, seen = first + start * stride + 1, first + (end - 1) * stride + 1
        unseen = torch.arange(young, seen) > at[start:end, None]  # of the slots that the tile's first query cannot see
        for head in range(heads):
            logits = by_head[head, :, start:end] @ keys[head, :seen].T
            if softmax.cap:
                softmax.logits(logits)
            logits[:, :, young:].masked_fill_(unseen, float("-inf"))
            highest = logits.amax(dim=-1, keepdim=True)
            probs = torch.add(-scale * highest, logits, alpha=scale, out=logits).exp_()
            weights = probs.sum(dim=-1, keepdim=True)
            if softmax.sinks is not None:
                weights += (softmax.sinks[head * group : (head + 1) * group, None, None] - scale * highest).exp_()
            weights.reciprocal_()
            sums[head, :, :seen] += (weights.transpose(1, 2) @ probs)[:, 0]
    return sums

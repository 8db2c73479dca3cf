"""Attention mass: what each slot received from all queries so far, without an n x n matrix.

colsum[hq, i] = sum over queries q of softmax(cap(scale * q . K))[i]: the accumulated scores of H2O, Elastic
Cache and PrefixKV. The kernels of attention do not hand out probabilities, so they are computed once
more, tile by tile. On CUDA by a Triton kernel (`kvserve.evidence.mass_triton`), elsewhere by torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # the kernels and their bench need torch and Triton only
    from kvserve.policy.softmax import Softmax

TILE = 64  # queries at a time: TILE * G rows of logits stay in a core's second-level cache


def column_sums(queries: Tensor, keys: Tensor, softmax: Softmax, first: int, stride: int = 1) -> Tensor:
    """Causal attention of some queries on all slots, summed over the queries.

    queries: (W, H * G, D); keys: (H, n, D), slots in order of age; query w is that of slot
    first + w * stride and sees the slots up to it; returns (H, G, n) float32.
    """
    if queries.is_cuda:
        from kvserve.evidence.mass_triton import column_sums as on_gpu

        return on_gpu(queries, keys, softmax, first, stride)
    return tiled(queries.float(), keys.float(), softmax, first, stride)


def tiled(queries: Tensor, keys: Tensor, softmax: Softmax, first: int, stride: int) -> Tensor:
    """By torch, in float32."""
    heads, slots, width = keys.shape
    scale = 1.0 if softmax.cap else softmax.scale  # where nothing comes in between, it costs no pass of its own
    count, group = len(queries), queries.shape[1] // heads
    sums = keys.new_zeros(heads, group, slots)
    by_head = queries.view(count, heads, group, width).permute(1, 2, 0, 3)
    at = first + stride * torch.arange(count, device=keys.device)
    for start in range(0, count, TILE):
        end = min(count, start + TILE)
        young, seen = first + start * stride + 1, first + (end - 1) * stride + 1
        # Of the slots that the tile's first query cannot see:
        unseen = torch.arange(young, seen, device=keys.device) > at[start:end, None]
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

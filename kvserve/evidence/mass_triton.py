"""Attention mass on CUDA: two passes over tiles, one for each query's softmax, one for each slot's sum.

No atomics, so sums do not depend on the order in which blocks run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvserve.policy.softmax import Softmax

QUERIES, SLOTS = 64, 64  # sizes of a tile


@triton.jit
def _capped(x, cap):
    """cap * tanh(x / cap), by an exponential that may overflow to infinity without harm."""
    return cap * (1.0 - 2.0 / (tl.exp(2.0 * x / cap) + 1.0))


@triton.jit
def _normalisers(
    q, k, sinks, lse, scale, count, slots, group, first, stride, cap,
    D: tl.constexpr, WIDTH: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    """lse[hq, w] = log sum over slots, and a sink, of exp(cap(scale * q . k)): grid (query tiles, query heads)."""
    hq = tl.program_id(1)
    w = tl.program_id(0) * BQ + tl.arange(0, BQ)
    d = tl.arange(0, WIDTH)
    heads = tl.num_programs(1)
    query = tl.load(q + (w[:, None] * heads + hq) * D + d[None], mask=(w[:, None] < count) & (d[None] < D), other=0.0)
    highest = tl.full([BQ], float("-inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    last = first + (tl.program_id(0) * BQ + BQ - 1) * stride + 1  # slots that the tile's newest query sees
    for start in range(0, tl.minimum(last, slots), BS):
        s = start + tl.arange(0, BS)
        key = tl.load(k + ((hq // group) * slots + s[:, None]) * D + d[None],
                      mask=(s[:, None] < slots) & (d[None] < D), other=0.0)  # fmt: skip
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:
            logits = _capped(logits, cap)
        logits = tl.where(s[None] <= first + w[:, None] * stride, logits, float("-inf"))
        peak = tl.maximum(highest, tl.max(logits, 1))
        total = total * tl.exp(highest - peak) + tl.sum(tl.exp(logits - peak[:, None]), 1)
        highest = peak
    if SUNK:
        sink = tl.load(sinks + hq)
        peak = tl.maximum(highest, sink)
        total = total * tl.exp(highest - peak) + tl.exp(sink - peak)
        highest = peak
    tl.store(lse + hq * count + w, highest + tl.log(total), mask=w < count)


@triton.jit
def _sums(
    q, k, lse, out, scale, count, slots, group, first, stride, cap,
    D: tl.constexpr, WIDTH: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    """out[hq, s] = sum over queries of exp(cap(scale * q . k) - lse): grid (slot tiles, query heads)."""
    hq = tl.program_id(1)
    s = tl.program_id(0) * BS + tl.arange(0, BS)
    d = tl.arange(0, WIDTH)
    heads = tl.num_programs(1)
    key = tl.load(k + ((hq // group) * slots + s[:, None]) * D + d[None],
                  mask=(s[:, None] < slots) & (d[None] < D), other=0.0)  # fmt: skip
    sums = tl.zeros([BS], tl.float32)
    blind = tl.maximum(0, tl.program_id(0) * BS - first) // stride  # queries that see none of these slots, about
    oldest = tl.minimum(blind, count) // BQ * BQ
    for start in range(oldest, count, BQ):
        w = start + tl.arange(0, BQ)
        query = tl.load(q + (w[:, None] * heads + hq) * D + d[None],
                        mask=(w[:, None] < count) & (d[None] < D), other=0.0)  # fmt: skip
        norm = tl.load(lse + hq * count + w, mask=w < count, other=float("inf"))
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:
            logits = _capped(logits, cap)
        probs = tl.exp(logits - norm[:, None])
        probs = tl.where((s[None] <= first + w[:, None] * stride) & (w[:, None] < count), probs, 0.0)
        sums += tl.sum(probs, 0)
    tl.store(out + hq * slots + s, sums, mask=s < slots)


def column_sums(queries: Tensor, keys: Tensor, softmax: Softmax, first: int, stride: int) -> Tensor:
    """(W, H * G, D) and (H, n, D), both float32 and contiguous -> (H, G, n); as `mass.column_sums`."""
    (count, query_heads, width), (heads, slots, _) = queries.shape, keys.shape
    group = query_heads // heads
    lse = torch.empty(query_heads, count, device=queries.device)
    out = torch.empty(heads, group, slots, device=queries.device)
    sizes = {"D": width, "WIDTH": max(16, triton.next_power_of_2(width)), "BQ": QUERIES, "BS": SLOTS}
    sizes |= {"CAPPED": bool(softmax.cap), "SUNK": softmax.sinks is not None}
    numbers = (softmax.scale, count, slots, group, first, stride, softmax.cap)
    sinks = lse if softmax.sinks is None else softmax.sinks  # without sinks, a pointer that is not read
    _normalisers[(triton.cdiv(count, QUERIES), query_heads)](queries, keys, sinks, lse, *numbers, **sizes)
    _sums[(triton.cdiv(slots, SLOTS), query_heads)](queries, keys, lse, out, *numbers, **sizes)
    return out

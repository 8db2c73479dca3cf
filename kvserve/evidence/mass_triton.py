"""Attention mass on CUDA: two passes over tiles, one for each query's softmax, one for each slot's sum.

No atomics, so sums do not depend on the order in which blocks run. Of one half-precision dtype, queries and keys
are multiplied as they are, with float32 sums; otherwise in float32, made of three products in TF32. Exponentials are
to the base 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:  # needs no more than torch and Triton
    from kvserve.policy.softmax import Softmax

LOG2E = 1.4426950408889634
STAYS = 32768  # bytes of the tile that a program keeps; the tiles that pass by it have half as many


@triton.jit
def _rows(start, at, count, step, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows `at` (n,) of `count` that lie `step` apart, (n, WIDTH), zeros where there are none."""
    d = tl.arange(0, WIDTH)
    return tl.load(start + at[:, None] * step + d[None], mask=(at[:, None] < count) & (d[None] < D), other=0.0)


@triton.jit
def _logits(left, right, scale, cap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """(n, D) and (m, D) -> (n, m) to the base 2; tanh by an exponential that may overflow to infinity without harm."""
    scaled = tl.dot(left, tl.trans(right), input_precision=PRECISION) * scale
    if CAPPED:
        scaled = cap * (1.0 - 2.0 / (tl.exp2(scaled) + 1.0))
    return scaled


@triton.jit
def _include(highest, total, logits):
    """A running maximum and the sum of exponentials relative to it, with these logits too."""
    peak = tl.maximum(highest, tl.max(logits, 1))
    return peak, total * tl.exp2(highest - peak) + tl.sum(tl.exp2(logits - peak[:, None]), 1)


@triton.jit(do_not_specialize=["count", "slots", "first", "stride"])
def _normalisers(
    q, k, sinks, lse, scale, count, slots, group, first, stride, cap,
    D: tl.constexpr, WIDTH: tl.constexpr, STAY: tl.constexpr, PASS: tl.constexpr,
    CAPPED: tl.constexpr, SUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """lse[hq, w] = log2 of the sum over slots, and a sink, of 2 ** logit: grid (query tiles, query heads)."""
    hq, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    oldest = tl.program_id(0) * STAY
    w = oldest + tl.arange(0, STAY)
    query = _rows(q + hq * D, w, count, heads * D, D, WIDTH)
    keys = k + (hq // group) * slots * D
    highest = tl.full([STAY], float("-inf"), tl.float32)
    total = tl.zeros([STAY], tl.float32)
    seen = tl.minimum(first + (oldest + STAY - 1) * stride + 1, slots)  # by any of the tile's queries
    by_all = tl.minimum(first + oldest * stride + 1, slots) // PASS * PASS
    for start in range(0, by_all, PASS):
        key = _rows(keys, start + tl.arange(0, PASS), slots, D, D, WIDTH)
        highest, total = _include(highest, total, _logits(query, key, scale, cap, CAPPED, PRECISION))
    for start in range(by_all, seen, PASS):
        s = start + tl.arange(0, PASS)
        key = _rows(keys, s, slots, D, D, WIDTH)
        logits = _logits(query, key, scale, cap, CAPPED, PRECISION)
        logits = tl.where(s[None] <= first + w[:, None] * stride, logits, float("-inf"))
        highest, total = _include(highest, total, logits)
    if SUNK:
        sink = tl.load(sinks + hq)
        peak = tl.maximum(highest, sink)
        total = total * tl.exp2(highest - peak) + tl.exp2(sink - peak)
        highest = peak
    tl.store(lse + hq * count + w, highest + tl.log2(total), mask=w < count)


@triton.jit(do_not_specialize=["count", "slots", "first", "stride"])
def _sums(
    q, k, lse, out, scale, count, slots, group, first, stride, cap,
    D: tl.constexpr, WIDTH: tl.constexpr, STAY: tl.constexpr, PASS: tl.constexpr,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[hq, s] = sum over queries of 2 ** (logit - lse): grid (slot tiles, query heads)."""
    hq, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    oldest = tl.program_id(0) * STAY
    s = oldest + tl.arange(0, STAY)
    key = _rows(k + (hq // group) * slots * D, s, slots, D, D, WIDTH)
    sums = tl.zeros([STAY, PASS], tl.float32)  # summed over its columns at the end, which is once
    blind = tl.maximum(0, oldest - first) // stride  # queries that see none of these slots, about
    partly = tl.maximum(0, oldest + STAY - 1 - first + stride - 1) // stride  # those that do not see all
    begin = tl.minimum(blind, count) // PASS * PASS
    by_all = tl.minimum((partly + PASS - 1) // PASS * PASS, count)
    for start in range(begin, by_all, PASS):
        w = start + tl.arange(0, PASS)
        query = _rows(q + hq * D, w, count, heads * D, D, WIDTH)
        norm = tl.load(lse + hq * count + w, mask=w < count, other=float("inf"))
        probs = tl.exp2(_logits(key, query, scale, cap, CAPPED, PRECISION) - norm[None])
        sums += tl.where(s[:, None] <= first + w[None] * stride, probs, 0.0)
    for start in range(tl.maximum(begin, by_all), count, PASS):
        w = start + tl.arange(0, PASS)
        query = _rows(q + hq * D, w, count, heads * D, D, WIDTH)
        norm = tl.load(lse + hq * count + w, mask=w < count, other=float("inf"))
        sums += tl.exp2(_logits(key, query, scale, cap, CAPPED, PRECISION) - norm[None])
    tl.store(out + hq * slots + s, tl.sum(sums, 1), mask=s < slots)


def column_sums(queries: Tensor, keys: Tensor, softmax: Softmax, first: int, stride: int) -> Tensor:
    """(W, H * G, D) and (H, n, D) -> (H, G, n) float32; as `mass.column_sums`."""
    halves = (torch.float16, torch.bfloat16) if queries.is_cuda else (torch.float16,)
    if queries.dtype != keys.dtype or queries.dtype not in halves:  # the interpreter has no products of bfloat16
        queries, keys = queries.float(), keys.float()
    queries, keys = queries.contiguous(), keys.contiguous()
    (count, query_heads, width), (heads, slots, _) = queries.shape, keys.shape
    lse = torch.empty(query_heads, count, device=queries.device)
    out = torch.empty(heads, query_heads // heads, slots, device=queries.device)
    sizes = {**tiles(width, queries.element_size()), "CAPPED": bool(softmax.cap), "PRECISION": "tf32x3"}
    stay = sizes["STAY"]
    scale = softmax.scale * LOG2E * (2.0 / softmax.cap if softmax.cap else 1.0)
    numbers = (scale, count, slots, query_heads // heads, first, stride, softmax.cap * LOG2E)
    sunk = softmax.sinks is not None
    sinks = lse if softmax.sinks is None else softmax.sinks * LOG2E  # without sinks, a pointer that is not read
    _normalisers[(triton.cdiv(count, stay), query_heads)](queries, keys, sinks, lse, *numbers, **sizes, SUNK=sunk)
    _sums[(triton.cdiv(slots, stay), query_heads)](queries, keys, lse, out, *numbers, **sizes)
    return out


def tiles(width: int, size: int) -> dict[str, int]:
    """What heads of `width` elements of `size` bytes are computed in: tile sizes that fit every GPU."""
    room = max(16, triton.next_power_of_2(width))
    stay = min(128, max(32, STAYS // (room * size)))
    return {"D": width, "WIDTH": room, "STAY": stay, "PASS": stay // 2, "num_warps": 8 if stay == 128 else 4}

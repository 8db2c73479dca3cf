"""Moving the tokens that stay on CUDA: one launch picks them into scratch memory, a second one puts them in place.

Source and destination blocks may overlap, and heads keep different slots, so nothing is written before all is
read; where no block is in both, one launch does. Contents are copied as integer words, whatever they stand for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvserve.cache.contents import LayerCache

WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)  # by size, the widest first
TILE = 2048  # words that a program copies


@triton.jit
def _offsets(blocks, t, known, block, outer, inner, S: tl.constexpr, S2: tl.constexpr):
    """Where tokens t of a request lie in the cache, in words."""
    within = t % S
    at = tl.load(blocks + t // S, mask=known, other=0)
    return at * block + (within // S2) * outer + (within % S2) * inner


@triton.jit(do_not_specialize=["count", "room"])
def _copy(
    cache, kept, src, dst, slots, count, room, apart, block, head, outer, inner, high, low,
    S: tl.constexpr, S2: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, WIDTH: tl.constexpr, T: tl.constexpr,
    PICK: tl.constexpr, PUT: tl.constexpr,
):  # fmt: skip
    """Entries from the cache (PICK) or scratch to the cache (PUT) or scratch: grid (tiles, KV heads, keys and values).

    Those from `count` on are zeros, up to `room`, all that the destination blocks hold. Strides are in words, `apart`
    leads from keys to values; scratch is (keys and values, H, count, D).
    """
    h, part = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    j, d = tl.program_id(0) * T + tl.arange(0, T), tl.arange(0, WIDTH)
    held = cache + part * apart + h * head + ((d // D2) * high + (d % D2) * low)[None]
    scratch = kept + ((part * tl.num_programs(1) + h) * count + j)[:, None] * D + d[None]
    known, wide = j < count, d[None] < D
    if PICK:
        t = tl.load(slots + h * count + j, mask=known, other=0)
        where = held + _offsets(src, t, known, block, outer, inner, S, S2)[:, None]
    else:
        where = scratch
    words = tl.load(where, mask=known[:, None] & wide, other=0)
    if PUT:
        tl.store(held + _offsets(dst, j, j < room, block, outer, inner, S, S2)[:, None], words,
                 mask=(j < room)[:, None] & wide)  # fmt: skip
    else:
        tl.store(scratch, words, mask=known[:, None] & wide)


def move(cache: LayerCache, src: Tensor, dst: Tensor, slots: Tensor, apart: bool = False) -> None:
    """From blocks `src` to blocks `dst` (b,) of each head its `slots` (H, n); the rest of `dst` is zeroed.

    apart: whether no block is in both.
    """
    keys, values = as_words(cache.keys.view), as_words(cache.values.view)
    gap = values.data_ptr() - keys.data_ptr()
    alike = (keys.shape, keys.stride(), keys.dtype) == (values.shape, values.stride(), values.dtype)
    src, dst, slots = src.contiguous(), dst.contiguous(), slots.contiguous()
    if alike and gap % keys.element_size() == 0:
        _move(keys, 2, gap // keys.element_size(), src, dst, slots, apart)
        return
    for view in (keys, values):
        _move(view, 1, 0, src, dst, slots, apart)


def _move(view: Tensor, parts: int, gap: int, src: Tensor, dst: Tensor, slots: Tensor, apart: bool) -> None:
    """Of one view, and of `parts` - 1 more at a distance of `gap` words."""
    (heads, count), (_, _, s1, s2, d1, d2) = slots.shape, view.shape
    kept = view if apart else view.new_empty(parts, heads, count, d1 * d2)
    width = triton.next_power_of_2(d1 * d2)
    tile, room = max(1, TILE // width), len(dst) * s1 * s2
    sizes = {"S": s1 * s2, "S2": s2, "D": d1 * d2, "D2": d2, "WIDTH": width, "T": tile}
    arguments = (view, kept, src, dst, slots, count, room, gap, *view.stride())
    for pick, put in [(True, True)] if apart else [(True, False), (False, True)]:
        grid = (triton.cdiv(room if put else count, tile), heads, parts)
        if grid[0]:
            _copy[grid](*arguments, **sizes, PICK=pick, PUT=put)


def as_words(view: Tensor) -> Tensor:
    """(B, H, S1, S2, D1, D2) in any dtype -> the same memory in words as wide as neighbouring dimensions allow."""
    axis = 5 if view.shape[5] > 1 else 4
    rows = view if axis == 5 else view.squeeze(5)
    size = view.element_size()
    for dtype in WORDS:
        wider, odd = divmod(dtype.itemsize, size)
        if wider == 0 or odd:
            continue
        strides = (stride for i, stride in enumerate(rows.stride()) if i != axis)
        numbers = (rows.shape[axis], rows.storage_offset(), *strides)
        if wider == 1 or (rows.stride(axis) == 1 and not any(number % wider for number in numbers)):
            return rows.view(dtype) if axis == 5 else rows.view(dtype).unsqueeze(5)
    raise TypeError(f"a cache of {view.dtype} has no words")

"""What is timed, part by part: one row after the other, as soon as it is measured. Needs torch and Triton only."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench.kernel_cases import ORDERS, Move, PlainSoftmax, Sizes, by_torch, median_seconds, moves, paged, replayed
from kvserve.cache.contents import LayerCache
from kvserve.cache.moving_triton import move
from kvserve.evidence.mass_triton import column_sums

Row = dict[str, Any]

HEADINGS = {
    "a": "Moving the slots of one layer that stay, the requests one after the other: bytes read and written; time on "
    "the GPU (as a CUDA graph), and called from Python.",
    "b": "Attention mass of one layer's whole prompt against flash attention of the same prompt (causal, torch's own).",
    "c": "A compaction of all requests in all layers, called from Python as the worker does: moving alone, without "
    "choosing what stays.",
}
SPARE = 3 << 30  # bytes of GPU memory left to scratch and to CUDA


def mover(sizes: Sizes, device: str) -> Iterator[Row]:
    for name, dtype in (("bf16", torch.bfloat16), ("fp8", torch.uint8)):
        count = sizes.heads * sizes.keep * 2 * sizes.head_size
        pieces = torch.empty(2, sizes.requests, count, dtype=dtype, device=device)
        plain = _row(f"{name}: plain copy", partial(_copies, pieces), sizes, count * dtype.itemsize, device)
        yield plain | {"of plain copy": 1.0}
        del pieces
        for how, run in _ways(sizes, device, [_layer(sizes, dtype, device)]):
            row = _row(f"{name}: {how}", run, sizes, count * dtype.itemsize, device)
            yield row | {"of plain copy": row["GB/s"] / plain["GB/s"]}


def _row(case: str, run: Callable[[], None], sizes: Sizes, size: int, device: str) -> Row:
    """A run moves `size` bytes of every request."""
    inside = median_seconds(replayed(run, device), sizes.repeats, device) / sizes.requests
    called = median_seconds(run, sizes.repeats, device) / sizes.requests
    return {"case": case, "us a move": 1e6 * inside, "GB/s": 2 * size / inside / 1e9, "us as called": 1e6 * called}


def _copies(pieces: torch.Tensor) -> None:
    for source, target in zip(*pieces, strict=True):
        target.copy_(source)


def _layer(sizes: Sizes, dtype: torch.dtype, device: str) -> LayerCache:
    return paged(sizes.blocks, sizes.heads, sizes.block, sizes.head_size, dtype, ORDERS["token-major"], device)


def _ways(sizes: Sizes, device: str, layers: list[LayerCache]) -> Iterator[tuple[str, Callable[[], None]]]:
    inside, apart = moves(sizes, False, device), moves(sizes, True, device)
    yield "torch, into own blocks", partial(_all, layers, inside, by_torch)
    yield "Triton, into own blocks", partial(_all, layers, inside, _by_triton)
    yield "Triton, into other blocks", partial(_all, layers, apart, partial(_by_triton, apart=True))


def _all(layers: list[LayerCache], requests: list[Move], run: Callable[[LayerCache, Move], None]) -> None:
    for request in requests:
        for layer in layers:
            run(layer, request)


def _by_triton(cache: LayerCache, one: Move, apart: bool = False) -> None:
    move(cache, *one, apart)


def mass(sizes: Sizes, device: str) -> Iterator[Row]:
    softmax = PlainSoftmax(sizes.head_size**-0.5)
    heads, width = sizes.heads, sizes.head_size
    for length in sizes.lengths:
        queries = torch.randn(length, heads * sizes.group, width, device=device).bfloat16()
        keys, values = torch.randn(2, heads, length, width, device=device).bfloat16()
        flash = median_seconds(partial(_attend, queries, keys, values, sizes.group), sizes.repeats, device)
        row: Row = {"tokens": length, "flash ms": 1e3 * flash}
        for every in (1, 8):
            run = partial(column_sums, queries[::every], keys, softmax, 0, every)
            taken = median_seconds(run, sizes.repeats, device)
            row |= {f"mass ms, every {every}": 1e3 * taken, f": flash, every {every}": taken / flash}
        if length <= sizes.lengths[len(sizes.lengths) // 2]:  # in float32 the longest takes seconds
            run = partial(column_sums, queries[::8].float(), keys.float(), softmax, 0, 8)
            row["float32 ms, every 8"] = 1e3 * median_seconds(run, sizes.repeats, device)
        yield row


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: int) -> None:
    """Flash attention proper on CUDA, whatever torch has elsewhere; keys and values (H, n, D)."""
    q = queries.transpose(0, 1)[None]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION] if q.is_cuda else [SDPBackend.MATH]):
        scaled_dot_product_attention(q, keys[None], values[None], is_causal=True, enable_gqa=group > 1)


def compaction(sizes: Sizes, device: str) -> Iterator[Row]:
    layers = [_layer(sizes, torch.bfloat16, device) for _ in range(_fitting(sizes, device))]
    done = f"{len(layers)} of {sizes.layers}" if len(layers) < sizes.layers else str(sizes.layers)
    size = sizes.requests * sizes.layers * sizes.heads * sizes.keep * 2 * sizes.head_size * 2
    for how, run in _ways(sizes, device, layers):
        taken = median_seconds(run, max(1, sizes.repeats // 2), device) * sizes.layers / len(layers)
        case = f"{sizes.requests} requests of {sizes.tokens} tokens, {sizes.keep} stay: {how}"
        rates = {"ms": 1e3 * taken, "ms a request": 1e3 * taken / sizes.requests, "GB/s": 2 * size / taken / 1e9}
        yield {"case": case, "layers timed": done, **rates}


def _fitting(sizes: Sizes, device: str) -> int:
    """Layers that the GPU's memory holds at once; the time of fewer is scaled to all."""
    if device == "cpu":
        return sizes.layers
    torch.cuda.empty_cache()
    free, layer = torch.cuda.mem_get_info()[0], sizes.blocks * sizes.block * sizes.heads * 2 * sizes.head_size * 2
    return max(1, min(sizes.layers, (free - SPARE) // layer))


PARTS: dict[str, Callable[[Sizes, str], Iterator[Row]]] = {"a": mover, "b": mass, "c": compaction}

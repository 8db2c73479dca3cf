"""What the kernels are checked and timed on: paged caches of random bytes, requests in them, queries and keys.

Needs torch and Triton only. Shapes: B blocks, H KV heads, S tokens per block, D head size.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kvserve.cache.contents import LayerCache, gpu_cache

ORDERS = {"token-major": (0, 2, 1, 3), "head-major": (0, 1, 2, 3), "heads first": (1, 0, 2, 3)}
"""How the axes (B, H, S, 2 * D) of a GPU cache may lie in memory."""


class PlainSoftmax(NamedTuple):
    """As kvserve.policy.softmax.Softmax, whose package needs more than torch."""

    scale: float = 1.0
    cap: float = 0.0
    sinks: Tensor | None = None

    def logits(self, products: Tensor) -> Tensor:
        scaled = products.mul_(self.scale)
        return scaled.div_(self.cap).tanh_().mul_(self.cap) if self.cap else scaled


@dataclass(frozen=True)
class Sizes:
    requests: int = 64
    layers: int = 32
    tokens: int = 8192  # of each request
    keep: int = 2048
    heads: int = 8
    group: int = 4  # query heads for each KV head
    head_size: int = 128
    block: int = 16
    lengths: tuple[int, ...] = (2048, 8192, 32768)  # tokens, of attention mass
    repeats: int = 7

    @property
    def held(self) -> int:
        """Blocks of one request."""
        return self.tokens // self.block

    @property
    def blocks(self) -> int:
        """Those of a pool that holds all requests, and the spare ones that the first of them moves to."""
        return self.requests * self.held + self.keep // self.block


TINY = Sizes(requests=2, layers=2, tokens=64, keep=16, heads=2, group=2, head_size=32, lengths=(70,), repeats=1)
"""For the interpreter: proves that it runs."""


def paged(
    blocks: int, heads: int, size: int, width: int, dtype: torch.dtype, order: Sequence[int], device: str
) -> LayerCache:
    """A GPU cache of random bytes, `width` elements for a token's keys of one head and as many for its values."""
    sizes = (blocks, heads, size, 2 * width * dtype.itemsize)
    raw = torch.empty([sizes[axis] for axis in order], dtype=torch.uint8, device=device).random_(0, 256)
    cache = raw.view(dtype).permute([list(order).index(axis) for axis in range(4)])
    return gpu_cache(cache, width, (1.0, 1.0), None)


class Move(NamedTuple):
    """Blocks of one request before and after a compaction, and the slots that stay, (H, keep)."""

    src: Tensor
    dst: Tensor
    slots: Tensor


def kept(heads: int, tokens: int, keep: int, device: str) -> Tensor:
    """The first four tokens and random ones, other ones for each head, ascending."""
    scores = torch.rand(heads, tokens, device=device)
    scores[:, :4] = 2.0
    return scores.topk(keep).indices.sort().values


def moves(sizes: Sizes, apart: bool, device: str) -> list[Move]:
    """One for each request, whose blocks lie scattered over the pool.

    A request keeps its first blocks; apart: it gets those that the one before it gave up, the first one spare blocks.
    """
    stay = sizes.keep // sizes.block
    found, spare = [], torch.arange(stay, device=device) + sizes.requests * sizes.held
    for src in torch.randperm(sizes.requests * sizes.held, device=device).view(sizes.requests, -1):
        found.append(Move(src, spare if apart else src[:stay], kept(sizes.heads, sizes.tokens, sizes.keep, device)))
        spare = src[:stay]
    return found


def by_torch(cache: LayerCache, move: Move) -> None:
    """As kvserve.cache.moving without merging, elsewhere than on CUDA."""
    picked = [tokens.pick(move.src, move.slots) for tokens in cache]
    for tokens, contents in zip(cache, picked, strict=True):
        tokens.write(move.dst, contents)


def median_seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    """Of some runs after a first one that does not count; on CUDA by events, from launch to end."""
    run()
    if device == "cpu":
        return statistics.median(_wall(run) for _ in range(repeats))
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found)


def _wall(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def replayed(run: Callable[[], object], device: str) -> Callable[[], object]:
    """The same as one CUDA graph, which takes the GPU's time and not that of its launches."""
    if device == "cpu":
        return run
    run()  # what is compiled at the first call must not be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay

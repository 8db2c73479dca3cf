"""Reading, picking and writing the tokens of one layer's paged cache, keys and values apart.

Shapes: B blocks in the pool, b block ids, H local KV heads, S tokens per block, D head size. Contents stay in
storage dtype and are moved as they are, never re-quantised.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kvserve.cache.layout import Layout


@dataclass
class Tokens:
    """The keys, or the values, of one layer's cache."""

    view: Tensor  # (B, H, S1, S2, D1, D2) over vLLM's memory: see `kvserve.cache.layout`
    scale: float = 1.0  # of fp8 codes, one per layer
    fp8: torch.dtype | None = None  # what the bytes of the cache stand for, if it stores bytes

    def __post_init__(self) -> None:
        axes = range(1, self.view.dim())
        self._stored = (0, *sorted(axes, key=self.view.stride, reverse=True))  # axes as they lie in a block's memory
        self._shown = tuple(sorted(range(self.view.dim()), key=self._stored.__getitem__))

    @property
    def block_size(self) -> int:
        return self.view.shape[2] * self.view.shape[3]

    @property
    def head_size(self) -> int:
        return self.view.shape[4] * self.view.shape[5]

    def read(self, blocks: Tensor, count: int) -> Tensor:
        """Contents of the first `count` slots of these blocks, (H, count, D)."""
        # In the order of memory, and by index_select: several times faster than view[blocks].
        tiles = self.view.permute(self._stored).index_select(0, blocks).permute(self._shown).transpose(0, 1)
        return tiles.reshape(tiles.shape[0], -1, self.head_size)[:, :count]

    def pick(self, blocks: Tensor, slots: Tensor) -> Tensor:
        """Contents of some slots for each head: slots (H, m) -> (H, m, D), a copy."""
        heads = torch.arange(slots.shape[0], device=slots.device)[:, None]
        at, inner = slots % self.block_size, self.view.shape[3]
        return self.view[blocks[slots // self.block_size], heads, at // inner, at % inner].flatten(2)

    def write(self, blocks: Tensor, contents: Tensor) -> None:
        """Store (H, m, D) into the first m slots of these blocks and zero the rest of the last one."""
        heads, count, width = contents.shape
        tiles = contents.new_zeros(heads, len(blocks) * self.block_size, width)
        tiles[:, :count] = contents
        tiles = tiles.view(heads, len(blocks), *self.view.shape[2:]).transpose(0, 1)
        self.view.permute(self._stored)[blocks] = tiles.permute(self._stored).contiguous()

    def decode(self, contents: Tensor) -> Tensor:
        """Contents -> float32."""
        if self.fp8 is None:
            return contents.float()
        return contents.contiguous().view(self.fp8).float() * self.scale

    def encode(self, numbers: Tensor) -> Tensor:
        """float32 -> contents, rounded to what the cache stores; undoes `decode`."""
        if self.fp8 is None:
            return numbers.to(self.view.dtype)
        limit = torch.finfo(self.fp8).max
        return (numbers / self.scale).clamp(-limit, limit).to(self.fp8).view(self.view.dtype)


class LayerCache(NamedTuple):
    """One layer's cache."""

    keys: Tokens
    values: Tokens


def take(values: Tensor, slots: Tensor) -> Tensor:
    """(H, n, ...) and (H, m) slots -> (H, m, ...)."""
    heads = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[heads, slots]


def cpu_cache(
    cache: Tensor, layouts: tuple[Layout, Layout], scales: tuple[float, float], fp8: torch.dtype | None
) -> LayerCache:
    """vLLM's CPU cache (B, H, S, 2 * D): a chunk of (block, head) holds all keys, then all values."""
    blocks, heads, size, width = cache.shape
    halves = cache.view(blocks, heads, 2, size * width // 2).unbind(2)
    return LayerCache(
        *(Tokens(layout.of(half), scale, fp8) for half, layout, scale in zip(halves, layouts, scales, strict=True))
    )


def gpu_cache(cache: Tensor, head_size: int, scales: tuple[float, float], fp8: torch.dtype | None) -> LayerCache:
    """vLLM's GPU cache in its logical view (B, H, S, 2 * D): a token's keys, then its values."""
    halves = zip(cache.split(head_size, dim=-1), scales, strict=True)
    return LayerCache(*(Tokens(view.unsqueeze(3).unsqueeze(5), scale, fp8) for view, scale in halves))

"""Reading, picking and writing the tokens of one layer's paged cache, keys and values apart.

Shapes: B blocks in the pool, b block ids, H local KV heads, S tokens per block, D head size. Contents stay in
storage dtype and are moved as they are, never re-quantised.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kvserve.engine.layout import Packing


class Tokens(Protocol):
    """The keys, or the values, of one layer's cache."""

    @property
    def block_size(self) -> int: ...

    def read(self, blocks: Tensor, count: int) -> Tensor:
        """Contents of the first `count` slots of these blocks, (H, count, D)."""

    def pick(self, blocks: Tensor, slots: Tensor) -> Tensor:
        """Contents of some slots for each head: slots (H, m) -> (H, m, D), a copy."""

    def write(self, blocks: Tensor, contents: Tensor) -> None:
        """Store (H, m, D) into the first m slots of these blocks and zero the rest of the last one."""

    def decode(self, contents: Tensor) -> Tensor:
        """Contents -> float32."""

    def encode(self, numbers: Tensor) -> Tensor:
        """float32 -> contents, rounded to what the cache stores; undoes `decode`."""


class Slots(NamedTuple):
    """One layer's cache."""

    keys: Tokens
    values: Tokens


@dataclass(kw_only=True)
class _Stored:
    """What storage says about numbers: fp8 codes with one scale per layer, or plain floats."""

    scale: float = 1.0
    fp8: torch.dtype | None = None

    def decode(self, contents: Tensor) -> Tensor:
        if self.fp8 is None:
            return contents.float()
        return contents.contiguous().view(self.fp8).float() * self.scale

    def encode(self, numbers: Tensor) -> Tensor:
        if self.fp8 is None:
            return numbers.to(self.stored)
        limit = torch.finfo(self.fp8).max
        return (numbers / self.scale).clamp(-limit, limit).to(self.fp8).view(self.stored)

    @property
    def stored(self) -> torch.dtype:
        """dtype of the cache tensor; bytes for fp8."""
        raise NotImplementedError


@dataclass(kw_only=True)
class StridedTokens(_Stored):
    """A cache in which a token's place is only strides: `view` is (B, H, S, D) over vLLM's memory.

    All of vLLM's GPU layouts are, and the CPU layouts but those for AMX.
    """

    view: Tensor

    @property
    def block_size(self) -> int:
        return self.view.shape[2]

    @property
    def stored(self) -> torch.dtype:
        return self.view.dtype

    def read(self, blocks: Tensor, count: int) -> Tensor:
        return _by_head(self.view.index_select(0, blocks), count)  # several times faster than view[blocks]

    def pick(self, blocks: Tensor, slots: Tensor) -> Tensor:
        size = self.view.shape[2]
        heads = torch.arange(slots.shape[0], device=slots.device)[:, None]
        return self.view[blocks[slots // size], heads, slots % size]

    def write(self, blocks: Tensor, contents: Tensor) -> None:
        self.view[blocks] = _tiles(contents, len(blocks), self.view.shape[2])


@dataclass(kw_only=True)
class PackedTokens(_Stored):
    """A cache whose chunks must be unpacked: `raw` is (B, H, S * D)."""

    raw: Tensor
    packing: Packing

    @property
    def block_size(self) -> int:
        return self.packing.block_size

    @property
    def stored(self) -> torch.dtype:
        return self.raw.dtype

    def read(self, blocks: Tensor, count: int) -> Tensor:
        return _by_head(self.packing.unpack(self.raw.index_select(0, blocks)), count)

    def pick(self, blocks: Tensor, slots: Tensor) -> Tensor:
        return take(self.read(blocks, len(blocks) * self.packing.block_size), slots)

    def write(self, blocks: Tensor, contents: Tensor) -> None:
        self.raw[blocks] = self.packing.pack(_tiles(contents, len(blocks), self.packing.block_size))


def take(values: Tensor, slots: Tensor) -> Tensor:
    """(H, n, ...) and (H, m) slots -> (H, m, ...)."""
    heads = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[heads, slots]


def _by_head(tiles: Tensor, count: int) -> Tensor:
    """(blocks, H, size, D) -> (H, count, D); undone by `_tiles`."""
    tiles = tiles.transpose(0, 1)
    return tiles.reshape(tiles.shape[0], -1, tiles.shape[3])[:, :count]


def _tiles(contents: Tensor, blocks: int, size: int) -> Tensor:
    """(H, m, D) -> (blocks, H, size, D), zeros behind the m tokens."""
    heads, count, width = contents.shape
    tiles = contents.new_zeros(heads, blocks * size, width)
    tiles[:, :count] = contents
    return tiles.view(heads, blocks, size, width).transpose(0, 1)


def cpu_slots(
    cache: Tensor, packings: tuple[Packing, Packing], scales: tuple[float, float], fp8: torch.dtype | None
) -> Slots:
    """vLLM's CPU cache (B, H, S, 2 * D): a chunk of (block, head) holds packed keys, then packed values."""
    blocks, heads, size, width = cache.shape
    halves = cache.view(blocks, heads, 2, size * width // 2)

    def tokens(half: int) -> Tokens:
        raw, packing = halves[:, :, half], packings[half]
        if len(packing.shape) != 2:
            return PackedTokens(raw=raw, packing=packing, scale=scales[half], fp8=fp8)
        view = raw.unflatten(-1, packing.shape).permute(0, 1, *(2 + i for i in packing.order))
        return StridedTokens(view=view, scale=scales[half], fp8=fp8)

    return Slots(tokens(0), tokens(1))


def gpu_slots(cache: Tensor, head_size: int, scales: tuple[float, float], fp8: torch.dtype | None) -> Slots:
    """vLLM's GPU cache in its logical view (B, H, S, 2 * D): a token's keys, then its values."""
    halves = zip(cache.split(head_size, dim=-1), scales, strict=True)
    return Slots(*(StridedTokens(view=view, scale=scale, fp8=fp8) for view, scale in halves))

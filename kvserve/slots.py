"""Reading and writing the tokens of one layer's paged cache, block ids in, (H, n, 2 * D) out."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvserve.layout import Packing


class Slots(Protocol):
    """One layer's cache. Contents are in storage dtype and moved as they are, never re-quantised."""

    def read(self, blocks: Tensor, tokens: int) -> Tensor:
        """Contents of the first `tokens` slots of these blocks: (H, tokens, 2 * D), keys then values."""

    def write(self, blocks: Tensor, contents: Tensor) -> None:
        """Store (H, m, 2 * D) into the first m slots of these blocks and zero the rest of the last one."""

    def decode(self, contents: Tensor) -> tuple[Tensor, Tensor]:
        """Contents -> keys and values, each (H, n, D) float32."""


@dataclass
class PackedSlots:
    """vLLM's CPU cache: (blocks, H, block_size, 2 * D), keys and values of a chunk packed apart."""

    cache: Tensor
    keys: Packing
    values: Packing
    k_scale: float = 1.0
    v_scale: float = 1.0
    fp8: torch.dtype | None = None

    def __post_init__(self) -> None:
        blocks, heads, size, width = self.cache.shape
        self._raw = self.cache.view(blocks, heads, 2, size * width // 2)
        self._size, self._head = size, width // 2

    def read(self, blocks: Tensor, tokens: int) -> Tensor:
        raw = self._raw[blocks]  # (b, H, 2, size * D)
        both = [packing.unpack(raw[:, :, i]) for i, packing in enumerate((self.keys, self.values))]
        tiles = torch.cat(both, dim=-1)  # (b, H, size, 2 * D)
        return tiles.transpose(0, 1).reshape(tiles.shape[1], -1, 2 * self._head)[:, :tokens]

    def write(self, blocks: Tensor, contents: Tensor) -> None:
        heads, tokens, width = contents.shape
        tiles = contents.new_zeros(heads, len(blocks) * self._size, width)
        tiles[:, :tokens] = contents
        tiles = tiles.view(heads, len(blocks), self._size, width).transpose(0, 1)
        keys, values = tiles.split(self._head, dim=-1)
        self._raw[blocks, :, 0] = self.keys.pack(keys)
        self._raw[blocks, :, 1] = self.values.pack(values)

    def decode(self, contents: Tensor) -> tuple[Tensor, Tensor]:
        if self.fp8 is not None:
            contents = contents.contiguous().view(self.fp8)
        keys, values = contents.float().split(self._head, dim=-1)
        return keys * self.k_scale, values * self.v_scale


@dataclass
class TokenSlots:
    """vLLM's GPU cache in its logical view (blocks, H, block_size, C): a token's C elements are its own.

    C is keys then values; the physical order of the axes is only strides, so plain indexing serves all
    of vLLM's layouts (FlashAttention, Triton).
    """

    cache: Tensor
    head_size: int
    k_scale: float = 1.0
    v_scale: float = 1.0
    fp8: torch.dtype | None = None

    def read(self, blocks: Tensor, tokens: int) -> Tensor:
        tiles = self.cache[blocks]  # (b, H, size, C)
        return tiles.transpose(0, 1).reshape(tiles.shape[1], -1, tiles.shape[3])[:, :tokens]

    def write(self, blocks: Tensor, contents: Tensor) -> None:
        heads, tokens, width = contents.shape
        size = self.cache.shape[2]
        tiles = contents.new_zeros(heads, len(blocks) * size, width)
        tiles[:, :tokens] = contents
        self.cache[blocks] = tiles.view(heads, len(blocks), size, width).transpose(0, 1)

    def decode(self, contents: Tensor) -> tuple[Tensor, Tensor]:
        if self.fp8 is not None:
            contents = contents.contiguous().view(self.fp8)
        keys, values = contents.float().split(self.head_size, dim=-1)
        return keys * self.k_scale, values * self.v_scale

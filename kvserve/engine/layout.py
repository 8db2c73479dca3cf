"""Where vLLM's kernels put token t, dimension d inside one (block, KV head) chunk of the cache."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Writer = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Packing:
    """One-to-one map between a flat chunk of block_size * D elements and (block_size, D).

    `shape` and `order` describe it as view + permute where possible; else `index[t * D + d]` is the
    position in the chunk.
    """

    block_size: int
    head_size: int
    shape: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    index: Tensor | None = None

    def unpack(self, chunks: Tensor) -> Tensor:
        """(..., block_size * D) -> (..., block_size, D)."""
        lead = chunks.shape[:-1]
        if self.index is not None:
            return chunks[..., self.index].view(*lead, self.block_size, self.head_size)
        axes = [*range(len(lead)), *(len(lead) + i for i in self.order)]
        return chunks.view(*lead, *self.shape).permute(axes).reshape(*lead, self.block_size, self.head_size)

    def pack(self, tokens: Tensor) -> Tensor:
        """(..., block_size, D) -> (..., block_size * D)."""
        lead = tokens.shape[:-2]
        if self.index is not None:
            flat = torch.empty(*lead, self.block_size * self.head_size, dtype=tokens.dtype)
            flat[..., self.index] = tokens.reshape(*lead, -1)
            return flat
        sizes = [self.shape[i] for i in self.order]
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        axes = [*range(len(lead)), *(len(lead) + i for i in inverse)]
        return tokens.reshape(*lead, *sizes).permute(axes).reshape(*lead, -1)


def known_packings(block_size: int, head_size: int) -> dict[str, Packing]:
    """The layouts that vLLM's CPU kernels are known to use, as strided views."""
    bs, d = block_size, head_size
    known = {
        "rows": Packing(bs, d, (bs, d), (0, 1)),
        "columns": Packing(bs, d, (d, bs), (1, 0)),
    }
    if bs % 16 == 0 and d % 16 == 0:
        # AMX: keys as pairs of dimensions of 16 tokens, values as pairs of tokens of 16 dimensions.
        known["key pairs"] = Packing(bs, d, (bs // 16, d // 2, 16, 2), (0, 2, 1, 3))
        known["value pairs"] = Packing(bs, d, (d // 16, bs // 2, 16, 2), (1, 3, 0, 2))
    return known


def named(permutation: Tensor, block_size: int, head_size: int) -> tuple[str, Packing]:
    """The packing whose position of (t, d) is permutation[t * D + d], as a view if it is a known one."""
    chunk = torch.arange(block_size * head_size)
    for name, packing in known_packings(block_size, head_size).items():
        if torch.equal(packing.unpack(chunk).reshape(-1), permutation):
            return name, packing
    return "index", Packing(block_size, head_size, index=permutation)


def probe(write: Writer, dtype: torch.dtype, block_size: int, head_size: int, base: int) -> tuple[Tensor, Tensor]:
    """Permutations of keys and of values, read off what the kernel itself writes.

    `write(key, value, cache, slots)` stores (tokens, 2 heads, D) into a cache (3 blocks, 2 heads,
    block_size, 2 * D). Element t * D + d is written digit by digit in a base that the dtype holds exactly.
    Raises RuntimeError if the result is no permutation, differs by head, or spills into a neighbour block.
    """
    size = block_size * head_size
    element = torch.arange(size)
    found = torch.zeros(2, 2, size, dtype=torch.long)  # head, K or V
    slots = torch.arange(block_size) + block_size  # block 1 of 3
    weight = 1
    while weight < size:
        digit = ((element // weight) % base).view(block_size, 1, head_size).expand(-1, 2, -1).contiguous()
        cache_ = torch.zeros(3, 2, block_size, 2 * head_size, dtype=dtype)
        write(digit, digit, cache_, slots)
        raw = _decoded(cache_)
        if raw[0].any() or raw[2].any():
            raise RuntimeError("the attention kernel wrote outside its block")
        found += raw[1].view(2, 2, size).round().long() * weight
        weight *= base
    if not torch.equal(found[0], found[1]):
        raise RuntimeError("the cache layout differs between KV heads")
    if not all(torch.equal(half.sort().values, element) for half in found[0]):
        raise RuntimeError("the cache layout is not a permutation of tokens and dimensions")
    keys, values = (half.argsort() for half in found[0])
    return keys, values


def _decoded(cache_: Tensor) -> Tensor:
    if cache_.dtype == torch.uint8:
        return cache_.view(torch.float8_e4m3fn).float()
    return cache_.float()


@cache
def cpu_packings(
    isa: str, dtype: torch.dtype, cache_dtype: str, block_size: int, head_size: int
) -> tuple[str, Packing, str, Packing]:
    """Name and packing of keys, name and packing of values, for vLLM's CPU attention kernel."""
    from vllm import _custom_ops as ops

    fp8 = cache_dtype.startswith("fp8")

    def write(key: Tensor, value: Tensor, cache_: Tensor, slots: Tensor) -> None:
        blocks, heads, size, _ = cache_.shape
        keys, values = cache_.view(blocks, heads, size * 2, -1).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(
            key.to(dtype), value.to(dtype), keys, values, slots, isa, 1.0, 1.0,
            "fp8_e4m3" if fp8 else "auto",
        )  # fmt: skip

    storage = torch.uint8 if fp8 else dtype
    keys, values = probe(write, storage, block_size, head_size, base=8 if fp8 else 128)
    return *named(keys, block_size, head_size), *named(values, block_size, head_size)

"""Where vLLM's kernels put dimension d of token t inside one (block, KV head) chunk of the cache.

Every layout that is known is a strided view of the chunk with four axes, (S1, S2, D1, D2): token t = t1 * S2 + t2,
dimension d = d1 * D2 + d2. A layout that is not known is refused.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kvserve.startup.guard import UnsupportedError

Writer = Callable[[Tensor, Tensor, Tensor, Tensor], None]


class Layout(NamedTuple):
    """A flat chunk of S * D elements as (S1, S2, D1, D2): seen in this `shape`, whose axes are then put in `order`."""

    name: str
    shape: tuple[int, int, int, int]
    order: tuple[int, int, int, int]

    def of(self, chunks: Tensor) -> Tensor:
        """(B, H, S * D) -> (B, H, S1, S2, D1, D2), a view."""
        return chunks.unflatten(-1, self.shape).permute(0, 1, *(2 + axis for axis in self.order))


def known_layouts(block_size: int, head_size: int) -> dict[str, Layout]:
    """Those of vLLM's CPU kernels, for S = block_size and D = head_size, by name."""
    s, d = block_size, head_size
    known = [Layout("rows", (s, 1, d, 1), (0, 1, 2, 3)), Layout("columns", (d, 1, s, 1), (2, 3, 0, 1))]
    if s % 16 == 0 and d % 16 == 0:
        # AMX: keys as pairs of dimensions of 16 tokens, values as pairs of tokens of 16 dimensions.
        known.append(Layout("key pairs", (s // 16, d // 2, 16, 2), (0, 2, 1, 3)))
        known.append(Layout("value pairs", (d // 16, s // 2, 16, 2), (1, 3, 0, 2)))
    return {layout.name: layout for layout in known}


def named(permutation: Tensor, block_size: int, head_size: int) -> Layout:
    """The layout in which (t, d) lies at permutation[t * D + d]. Raises UnsupportedError if none is known."""
    chunk = torch.arange(block_size * head_size).view(1, 1, -1)
    for layout in known_layouts(block_size, head_size).values():
        if torch.equal(layout.of(chunk).reshape(-1), permutation):
            return layout
    raise UnsupportedError(
        f"the attention kernel stores blocks of {block_size} tokens with heads of {head_size} in an unknown layout; "
        f"known: {', '.join(known_layouts(block_size, head_size))}"
    )


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
def cpu_layouts(
    isa: str, dtype: torch.dtype, cache_dtype: str, block_size: int, head_size: int
) -> tuple[Layout, Layout]:
    """Layouts of keys and of values of vLLM's CPU attention kernel, proved on this machine."""
    from vllm import _custom_ops as ops

    fp8 = cache_dtype.startswith("fp8")

    def write(key: Tensor, value: Tensor, cache_: Tensor, slots: Tensor) -> None:
        blocks, heads, size, _ = cache_.shape
        keys, values = cache_.view(blocks, heads, size * 2, -1).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(
            key.to(dtype), value.to(dtype), keys, values, slots, isa, 1.0, 1.0,
            "fp8_e4m3" if fp8 else "auto",
        )  # fmt: skip

    found = probe(write, torch.uint8 if fp8 else dtype, block_size, head_size, base=8 if fp8 else 128)
    keys, values = (named(permutation, block_size, head_size) for permutation in found)
    return keys, values

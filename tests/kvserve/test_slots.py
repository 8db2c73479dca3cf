"""Contents read from a paged cache are the tokens that were written, wherever their blocks lie."""

import pytest
import torch

from kvserve.layout import known_packings
from kvserve.slots import PackedSlots, TokenSlots

H, BS, D, BLOCKS = 2, 32, 64, 12


def packed(keys, values, dtype):
    known = known_packings(BS, D)
    return PackedSlots(torch.randn(BLOCKS, H, BS, 2 * D).to(dtype), known[keys], known[values])


def strided(order):
    """vLLM's GPU cache: a logical (blocks, H, size, 2 * D) view whose axes lie in memory in `order`."""
    sizes = (BLOCKS, H, BS, 2 * D)
    memory = torch.randn([sizes[i] for i in order])
    return TokenSlots(memory.permute([order.index(i) for i in range(4)]), D)


CASES = {
    "vec": lambda: packed("columns", "rows", torch.float32),
    "amx": lambda: packed("key pairs", "value pairs", torch.bfloat16),
    "head-major": lambda: strided((0, 1, 2, 3)),
    "token-major": lambda: strided((0, 2, 1, 3)),
    "block-last": lambda: strided((1, 0, 2, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_write_then_read(case):
    slots = CASES[case]()
    dtype = slots.cache.dtype
    contents = torch.randn(H, 70, 2 * D).to(dtype)
    before = slots.cache.clone()
    blocks = torch.tensor([7, 2, 9])
    slots.write(blocks, contents)
    assert torch.equal(slots.read(blocks, 70), contents)
    assert not slots.read(blocks, 96)[:, 70:].any(), "stale slots of the last block must be zeroed"
    others = [b for b in range(BLOCKS) if b not in (7, 2, 9)]
    assert torch.equal(slots.cache[others], before[others])
    keys, values = slots.decode(contents)
    assert torch.equal(torch.cat([keys, values], -1), contents.float())


@pytest.mark.parametrize("case", CASES)
def test_move_in_place(case):
    """Source and destination blocks may overlap: a read copies."""
    slots = CASES[case]()
    contents = torch.randn(H, 96, 2 * D).to(slots.cache.dtype)
    slots.write(torch.tensor([3, 4, 5]), contents)
    keep = torch.arange(10, 60)
    slots.write(torch.tensor([4, 3]), slots.read(torch.tensor([3, 4, 5]), 96)[:, keep])
    assert torch.equal(slots.read(torch.tensor([4, 3]), 50), contents[:, keep])


def test_fp8_contents_move_as_bytes_and_decode_with_scales():
    slots = TokenSlots(torch.zeros(4, H, BS, 2 * D, dtype=torch.uint8), D, 0.5, 2.0, torch.float8_e4m3fn)
    values = torch.randn(H, 40, 2 * D)
    raw = values.to(torch.float8_e4m3fn).view(torch.uint8)
    slots.write(torch.tensor([1, 3]), raw)
    assert torch.equal(slots.read(torch.tensor([1, 3]), 40), raw)
    keys, vals = slots.decode(raw)
    exact = values.to(torch.float8_e4m3fn).float()
    assert torch.equal(keys, exact[..., :D] * 0.5)
    assert torch.equal(vals, exact[..., D:] * 2.0)

"""Contents read from a paged cache are the tokens that were written, wherever their blocks lie."""

import pytest
import torch

from kvserve.cache.contents import cpu_cache, gpu_cache
from kvserve.cache.layout import known_layouts

H, BS, D, BLOCKS = 2, 32, 64, 12


def packed(keys, values, dtype):
    known = known_layouts(BS, D)
    cache = torch.randn(BLOCKS, H, BS, 2 * D).to(dtype)
    return cache, cpu_cache(cache, (known[keys], known[values]), (1.0, 1.0), None)


def strided(order):
    """vLLM's GPU cache: a logical (blocks, H, size, 2 * D) view whose axes lie in memory in `order`."""
    sizes = (BLOCKS, H, BS, 2 * D)
    cache = torch.randn([sizes[i] for i in order]).permute([order.index(i) for i in range(4)])
    return cache, gpu_cache(cache, D, (1.0, 1.0), None)


CASES = {
    "vec": lambda: packed("columns", "rows", torch.float32),
    "amx": lambda: packed("key pairs", "value pairs", torch.bfloat16),
    "head-major": lambda: strided((0, 1, 2, 3)),
    "token-major": lambda: strided((0, 2, 1, 3)),
    "block-last": lambda: strided((1, 0, 2, 3)),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def test_write_then_read(case):
    cache, slots = case
    before = cache.clone()
    blocks = torch.tensor([7, 2, 9])
    for tokens in slots:
        contents = torch.randn(H, 70, D).to(cache.dtype)
        tokens.write(blocks, contents)
        assert torch.equal(tokens.read(blocks, 70), contents)
        assert not tokens.read(blocks, 96)[:, 70:].any(), "stale slots of the last block must be zeroed"
        assert torch.equal(tokens.decode(contents), contents.float())
    others = [b for b in range(BLOCKS) if b not in (7, 2, 9)]
    assert torch.equal(cache[others], before[others])


def test_keys_and_values_are_apart(case):
    cache, slots = case
    blocks = torch.tensor([1, 4])
    values = slots.values.read(blocks, 64).clone()
    slots.keys.write(blocks, torch.randn(H, 64, D).to(cache.dtype))
    assert torch.equal(slots.values.read(blocks, 64), values)


def test_each_head_picks_its_own(case):
    _, slots = case
    blocks = torch.tensor([3, 11, 5])
    chosen = torch.stack([torch.randperm(96)[:20].sort().values for _ in range(H)])
    for tokens in slots:
        contents = tokens.read(blocks, 96)
        picked = tokens.pick(blocks, chosen)
        assert torch.equal(picked, torch.stack([contents[h, chosen[h]] for h in range(H)]))


def test_source_and_destination_may_overlap(case):
    _, slots = case
    chosen = torch.arange(10, 60).expand(H, -1)
    for tokens in slots:
        contents = tokens.read(torch.tensor([3, 4, 5]), 96).clone()
        tokens.write(torch.tensor([4, 3]), tokens.pick(torch.tensor([3, 4, 5]), chosen))
        assert torch.equal(tokens.read(torch.tensor([4, 3]), 50), contents[:, 10:60])


def test_every_layout_is_a_view(case):
    """Nothing is unpacked: what is written through the view is in vLLM's memory."""
    cache, slots = case
    for tokens in slots:
        assert tokens.view.untyped_storage().data_ptr() == cache.untyped_storage().data_ptr()
        assert (tokens.block_size, tokens.head_size) == (BS, D)


def test_fp8_contents_move_as_bytes_and_decode_with_scales():
    cache = torch.zeros(4, H, BS, 2 * D, dtype=torch.uint8)
    slots = gpu_cache(cache, D, (0.5, 2.0), torch.float8_e4m3fn)
    exact = torch.randn(H, 40, D).to(torch.float8_e4m3fn)
    blocks = torch.tensor([1, 3])
    for tokens, scale in zip(slots, (0.5, 2.0), strict=True):
        tokens.write(blocks, exact.view(torch.uint8))
        assert torch.equal(tokens.read(blocks, 40), exact.view(torch.uint8))
        assert torch.equal(tokens.decode(tokens.read(blocks, 40)), exact.float() * scale)

"""Contents read from a paged cache are the tokens that were written, wherever their blocks lie."""

import pytest
import torch

from kvserve.engine.layout import Packing, known_packings
from kvserve.engine.slots import PackedTokens, StridedTokens, cpu_slots, gpu_slots

H, BS, D, BLOCKS = 2, 32, 64, 12


def packed(keys, values, dtype):
    known = known_packings(BS, D)
    cache = torch.randn(BLOCKS, H, BS, 2 * D).to(dtype)
    return cache, cpu_slots(cache, (known[keys], known[values]), (1.0, 1.0), None)


def indexed():
    cache = torch.randn(BLOCKS, H, BS, 2 * D)
    packing = Packing(BS, D, index=torch.randperm(BS * D))
    return cache, cpu_slots(cache, (packing, packing), (1.0, 1.0), None)


def strided(order):
    """vLLM's GPU cache: a logical (blocks, H, size, 2 * D) view whose axes lie in memory in `order`."""
    sizes = (BLOCKS, H, BS, 2 * D)
    cache = torch.randn([sizes[i] for i in order]).permute([order.index(i) for i in range(4)])
    return cache, gpu_slots(cache, D, (1.0, 1.0), None)


CASES = {
    "vec": lambda: packed("columns", "rows", torch.float32),
    "amx": lambda: packed("key pairs", "value pairs", torch.bfloat16),
    "unknown": indexed,
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


def test_plain_layouts_are_views():
    """Only AMX's pairs and unknown permutations pay for unpacking."""
    kinds = {name: type(make()[1].keys) for name, make in CASES.items()}
    assert {n for n, kind in kinds.items() if kind is PackedTokens} == {"amx", "unknown"}
    assert kinds["vec"] is StridedTokens


def test_fp8_contents_move_as_bytes_and_decode_with_scales():
    cache = torch.zeros(4, H, BS, 2 * D, dtype=torch.uint8)
    slots = gpu_slots(cache, D, (0.5, 2.0), torch.float8_e4m3fn)
    exact = torch.randn(H, 40, D).to(torch.float8_e4m3fn)
    blocks = torch.tensor([1, 3])
    for tokens, scale in zip(slots, (0.5, 2.0), strict=True):
        tokens.write(blocks, exact.view(torch.uint8))
        assert torch.equal(tokens.read(blocks, 40), exact.view(torch.uint8))
        assert torch.equal(tokens.decode(tokens.read(blocks, 40)), exact.float() * scale)

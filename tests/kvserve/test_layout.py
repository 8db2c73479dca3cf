"""Packings are one-to-one maps, and the probe reads them off whatever a kernel does."""

import pytest
import torch

from kvserve.engine.layout import Packing, cpu_packings, known_packings, named, probe

BS, D = 32, 64


@pytest.mark.parametrize("name", known_packings(BS, D))
def test_pack_is_the_inverse_of_unpack(name):
    packing, tokens = known_packings(BS, D)[name], torch.randn(2, 3, BS, D)
    assert torch.equal(packing.unpack(packing.pack(tokens)), tokens)


def test_amx_key_pairs():
    """Two neighbouring dimensions of a token lie side by side; 16 tokens make a row."""
    chunk = known_packings(BS, D)["key pairs"].unpack(torch.arange(BS * D))
    assert chunk[0, :4].tolist() == [0, 1, 32, 33]
    assert chunk[:3, 0].tolist() == [0, 2, 4]
    assert chunk[16, 0] == 16 * D


def kernel(order_k, order_v):
    """A writer that stores keys and values permuted in its own way."""

    def write(key, value, cache, slots):
        blocks, heads, size, width = cache.shape
        flat = cache.view(blocks, heads, 2, size * width // 2)
        for half, content, order in ((0, key, order_k), (1, value, order_v)):
            block = int(slots[0]) // size
            flat[block, :, half] = content.transpose(0, 1).reshape(heads, -1)[:, order].to(cache.dtype)

    return write


def test_probe_finds_any_permutation():
    shuffled, rows = torch.randperm(BS * D), torch.arange(BS * D)
    keys, values = probe(kernel(shuffled, rows), torch.bfloat16, BS, D, base=128)
    assert torch.equal(keys, shuffled.argsort())
    name, packing = named(keys, BS, D)
    assert name == "index"
    tokens = torch.randn(5, BS, D)
    assert torch.equal(packing.unpack(packing.pack(tokens)), tokens)
    assert named(values, BS, D)[0] == "rows"


def test_probe_refuses_what_is_no_permutation():
    twice = torch.arange(BS * D)
    twice[1] = 0
    with pytest.raises(RuntimeError, match="not a permutation"):
        probe(kernel(twice, twice), torch.float32, BS, D, base=128)


@pytest.mark.parametrize(
    ("dtype", "cache"), [(torch.float32, "auto"), (torch.bfloat16, "auto"), (torch.bfloat16, "fp8_e4m3")]
)
def test_the_real_kernel_is_known(dtype, cache):
    keys, packing, values, _ = cpu_packings("vec", dtype, cache, BS, D)
    assert "index" not in (keys, values)
    assert isinstance(packing, Packing)

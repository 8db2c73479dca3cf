"""Known layouts are one-to-one maps, the probe reads them off whatever a kernel does, and unknown ones are refused."""

import pytest
import torch

from kvserve.cache.layout import cpu_layouts, known_layouts, named, probe
from kvserve.startup.guard import UnsupportedError

BS, D = 32, 64


@pytest.mark.parametrize("name", known_layouts(BS, D))
def test_each_element_has_one_place(name):
    seen = known_layouts(BS, D)[name].of(torch.arange(BS * D).view(1, 1, -1))
    assert seen.dim() == 6
    assert torch.equal(seen.flatten().sort().values, torch.arange(BS * D))


def test_amx_key_pairs():
    """Two neighbouring dimensions of a token lie side by side; 16 tokens make a row."""
    chunk = known_layouts(BS, D)["key pairs"].of(torch.arange(BS * D).view(1, 1, -1)).reshape(BS, D)
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
    assert named(values, BS, D).name == "rows"
    with pytest.raises(UnsupportedError, match=f"{BS} tokens with heads of {D} in an unknown layout; known: rows, col"):
        named(keys, BS, D)


def test_probe_refuses_what_is_no_permutation():
    twice = torch.arange(BS * D)
    twice[1] = 0
    with pytest.raises(RuntimeError, match="not a permutation"):
        probe(kernel(twice, twice), torch.float32, BS, D, base=128)


@pytest.mark.parametrize(
    ("dtype", "cache"), [(torch.float32, "auto"), (torch.bfloat16, "auto"), (torch.bfloat16, "fp8_e4m3")]
)
def test_the_real_kernel_is_known(dtype, cache):
    assert {layout.name for layout in cpu_layouts("vec", dtype, cache, BS, D)} == {"columns", "rows"}

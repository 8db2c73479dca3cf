"""Column sums of attention: against the plain matrix, and the Triton kernel (interpreted) against torch."""

import os
import subprocess
import sys

import pytest
import torch

from kvserve.mass import column_sums

SHAPES = [(5, 5, 1, 1, 16), (64, 64, 2, 2, 64), (70, 200, 2, 3, 24), (1, 130, 2, 2, 64), (129, 129, 1, 4, 128)]


def naive(queries, keys, scale, first, stride=1):
    """The whole matrix in float64."""
    count, slots, heads = len(queries), keys.shape[1], keys.shape[0]
    group = queries.shape[1] // heads
    sums = torch.zeros(heads, group, slots, dtype=torch.float64)
    for hq in range(heads * group):
        logits = queries[:, hq].double() @ keys[hq // group].double().T * scale
        for w in range(count):
            logits[w, first + w * stride + 1 :] = float("-inf")
        sums[hq // group, hq % group] = logits.softmax(-1).sum(0)
    return sums


def world(count, slots, heads, group, width):
    g = torch.Generator().manual_seed(count + slots)
    return torch.randn(count, heads * group, width, generator=g), torch.randn(heads, slots, width, generator=g)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_matrix(shape):
    queries, keys = world(*shape)
    first = shape[1] - shape[0]
    found = column_sums(queries, keys, 0.2, first)
    assert torch.allclose(found.double(), naive(queries, keys, 0.2, first), atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.tensor(float(shape[0])), atol=1e-3)  # each query gives 1


def test_every_third_query():
    queries, keys = world(200, 230, 2, 2, 32)
    found = column_sums(queries[1::3], keys, 0.2, 31, 3)
    assert torch.allclose(found.double(), naive(queries[1::3], keys, 0.2, 31, 3), atol=1e-5)


def test_chunks_add_up():
    """A prompt in two chunks: queries of the first on its slots, of the second on all."""
    queries, keys = world(150, 150, 2, 2, 32)
    whole = column_sums(queries, keys, 0.2, 0)
    parts = column_sums(queries[100:], keys, 0.2, 100)
    parts[:, :, :100] += column_sums(queries[:100], keys[:, :100], 0.2, 0)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_large_logits_do_not_overflow():
    queries, keys = world(40, 40, 1, 1, 16)
    found = column_sums(100 * queries, 100 * keys, 1.0, 0)
    assert torch.isfinite(found).all()
    assert found.sum() == pytest.approx(40, abs=1e-3)


INTERPRETED = """
import torch
from tests.kvserve.test_mass import SHAPES, world
from kvserve.mass import column_sums as expected
from kvserve.mass_triton import column_sums
for shape in SHAPES:
    queries, keys = world(*shape)
    first = shape[1] - shape[0]
    found = column_sums(queries, keys, 0.2, first, 1)
    assert torch.allclose(found, expected(queries, keys, 0.2, first), atol=1e-5), shape
    some = queries[::3].contiguous()
    found = column_sums(some, keys, 0.2, first, 3)
    assert torch.allclose(found, expected(some, keys, 0.2, first, 3), atol=1e-5), shape
print("equal", len(SHAPES))
"""


def test_triton_kernel_in_the_interpreter():
    """In a process of its own: the interpreter is chosen when triton is imported."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == f"equal {len(SHAPES)}", done.stderr

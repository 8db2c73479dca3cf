"""Column sums of attention: against the plain matrix, and the Triton kernel (interpreted) against torch."""

import os
import subprocess
import sys

import pytest
import torch

from kvserve.evidence.mass import column_sums
from kvserve.policy.softmax import Softmax

SOFTMAXES = [
    Softmax(0.2),
    Softmax(0.2, cap=1.5),
    Softmax(0.2, sinks=torch.linspace(-2, 5, 6)),
    Softmax(0.2, 1.5, torch.linspace(-2, 5, 6)),
]
SHAPES = [(5, 5, 1, 1, 16), (64, 64, 2, 2, 64), (70, 200, 2, 3, 24), (1, 130, 2, 2, 64), (129, 129, 1, 4, 128)]


def naive(queries, keys, softmax, first, stride=1):
    """The whole matrix in float64; `softmax` as numbers."""
    scale, cap, sinks = softmax
    count, slots, heads = len(queries), keys.shape[1], keys.shape[0]
    group = queries.shape[1] // heads
    sums = torch.zeros(heads, group, slots, dtype=torch.float64)
    for hq in range(heads * group):
        logits = queries[:, hq].double() @ keys[hq // group].double().T * scale
        logits = cap * (logits / cap).tanh() if cap else logits
        for w in range(count):
            logits[w, first + w * stride + 1 :] = float("-inf")
        extra = torch.full((count, 1), float("-inf") if sinks is None else float(sinks[hq]), dtype=torch.float64)
        sums[hq // group, hq % group] = torch.cat([logits, extra], 1).softmax(-1)[:, :-1].sum(0)
    return sums


def world(count, slots, heads, group, width):
    g = torch.Generator().manual_seed(count + slots)
    return torch.randn(count, heads * group, width, generator=g), torch.randn(heads, slots, width, generator=g)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_matrix(shape):
    queries, keys = world(*shape)
    first = shape[1] - shape[0]
    found = column_sums(queries, keys, Softmax(0.2), first)
    assert torch.allclose(found.double(), naive(queries, keys, Softmax(0.2), first), atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.tensor(float(shape[0])), atol=1e-3)  # each query gives 1


def test_every_third_query():
    queries, keys = world(200, 230, 2, 2, 32)
    found = column_sums(queries[1::3], keys, Softmax(0.2), 31, 3)
    assert torch.allclose(found.double(), naive(queries[1::3], keys, Softmax(0.2), 31, 3), atol=1e-5)


@pytest.mark.parametrize("softmax", SOFTMAXES[1:])
def test_soft_cap_and_sinks(softmax):
    queries, keys = world(150, 170, 2, 3, 32)
    found = column_sums(queries, keys, softmax, 20)
    assert torch.allclose(found.double(), naive(queries, keys, softmax, 20), atol=1e-5)


def test_chunks_add_up():
    """A prompt in two chunks: queries of the first on its slots, of the second on all."""
    queries, keys = world(150, 150, 2, 2, 32)
    whole = column_sums(queries, keys, Softmax(0.2), 0)
    parts = column_sums(queries[100:], keys, Softmax(0.2), 100)
    parts[:, :, :100] += column_sums(queries[:100], keys[:, :100], Softmax(0.2), 0)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_large_logits_do_not_overflow():
    queries, keys = world(40, 40, 1, 1, 16)
    found = column_sums(100 * queries, 100 * keys, Softmax(1.0), 0)
    assert torch.isfinite(found).all()
    assert found.sum() == pytest.approx(40, abs=1e-3)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = ((33, 33, 1), (100, 131, 1), (41, 250, 5))  # queries, slots, stride


def kernel_cases():
    """(dtype, queries, slots, stride, KV heads, group, head size, softmax): every pair of two settings, about."""
    softmaxes = [Softmax(0.2), Softmax(0.2, cap=1.5), Softmax(0.2, sinks=torch.linspace(-2, 5, 8))]
    softmaxes.append(Softmax(0.2, 1.5, torch.linspace(-2, 5, 8)))
    number = 0
    for dtype in DTYPES:
        for group in (1, 4, 8):
            for width in (64, 80, 128, 256):
                yield dtype, *LENGTHS[number % 3], 8 // group, group, width, softmaxes[number // 3 % 4]
                number += 1


def check_kernel():
    """The number of cases that came out right, of shapes in float32 and of other dtypes. Raises AssertionError."""
    from kvserve.evidence.mass_triton import column_sums as by_triton

    for shape in SHAPES:
        queries, keys = world(*shape)
        first = shape[1] - shape[0]
        for softmax in SOFTMAXES:
            found = by_triton(queries, keys, softmax, first, 1)
            assert torch.allclose(found, column_sums(queries, keys, softmax, first), atol=1e-5), (shape, softmax)
        found = by_triton(queries[::3], keys, SOFTMAXES[0], first, 3)
        assert torch.allclose(found, column_sums(queries[::3], keys, SOFTMAXES[0], first, 3), atol=1e-5), shape
    count = 0
    for case in kernel_cases():
        dtype, queries, slots, stride, heads, group, width, softmax = case
        q, k = (made.to(dtype) for made in world(queries, slots, heads, group, width))
        first = slots - 1 - (queries - 1) * stride
        found, wanted = by_triton(q, k, softmax, first, stride), naive(q, k, softmax, first, stride)
        assert torch.allclose(found.double(), wanted, atol=2e-5, rtol=1e-5), (case, (found - wanted).abs().max())
        count += 1
    return count


def test_triton_kernel_in_the_interpreter():
    """In a process of its own: the interpreter is chosen when triton is imported."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    script = "from tests.kvserve.test_mass import check_kernel; print('equal', check_kernel())"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == f"equal {len(list(kernel_cases()))}", done.stderr


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_keys_of_half_precision_are_read_as_the_numbers_that_they_are(dtype):
    queries, keys = (made.to(dtype) for made in world(70, 90, 2, 2, 32))
    found = column_sums(queries, keys, Softmax(0.2), 20)
    assert torch.equal(found, column_sums(queries.float(), keys.float(), Softmax(0.2), 20))
    assert torch.allclose(found.double(), naive(queries, keys, Softmax(0.2), 20), atol=1e-5)

"""The mover of slots in Triton (interpreted) against torch: every layout and dtype, blocks of every kind."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from kvserve.cache import moving
from kvserve.cache.contents import Tokens, cpu_cache, gpu_cache
from kvserve.cache.layout import known_layouts
from kvserve.policy import Merged

B, H, S = 14, 3, 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
ORDERS = {"head-major": (0, 1, 2, 3), "token-major": (0, 2, 1, 3), "heads first": (1, 0, 2, 3)}
CPU = {"vec": ("columns", "rows"), "amx": ("key pairs", "value pairs")}
PACKED = (68, 67, 36, 1)  # bytes of a token of one head: 4-bit codes and their scales, and odd ones
WIDE = [("token-major", torch.bfloat16, 128), ("token-major", torch.uint8, 128), ("head-major", torch.float16, 256)]


def cases():
    """(layout, dtype, head size): all that is tested."""
    yield from ((layout, dtype, width) for layout in ORDERS for dtype in DTYPES for width in (64, 80))
    yield from WIDE
    yield from ((layout, dtype, 64) for layout in CPU for dtype in DTYPES)
    yield from ((layout, torch.uint8, width) for layout in ORDERS for width in PACKED)


def cache_of(layout, dtype, width, generator):
    """Random bytes, seen as a cache: they may be no numbers in its dtype."""
    sizes = (B, H, S, 2 * width * dtype.itemsize)
    order = ORDERS.get(layout, (0, 1, 2, 3))
    raw = torch.randint(256, [sizes[axis] for axis in order], dtype=torch.uint8, generator=generator).view(dtype)
    cache = raw.permute([order.index(axis) for axis in range(4)])
    if layout in ORDERS:
        return raw, gpu_cache(cache, width, (1.0, 1.0), None)
    known = known_layouts(S, width)
    return raw, cpu_cache(cache, tuple(known[name] for name in CPU[layout]), (1.0, 1.0), None)


def blocks(generator):
    """Source blocks, destination blocks, how many tokens there are and stay, and whether no block is in both."""
    src, others = torch.randperm(B, generator=generator).split([8, B - 8])
    held = int(torch.randint(7 * S + 1, 8 * S + 1, (), generator=generator))
    keep = int(torch.randint(0, 5 * S + 1, (), generator=generator))
    need = -(-keep // S)
    kinds = {
        "first ones": src[:need],
        "last ones": src[8 - need :],
        "shuffled": src[torch.randperm(8, generator=generator)[:need]],
        "own and others": torch.cat([src[3:5], others])[:need],
        "others": others[:need],
    }
    return src, kinds, held, keep


def check_all(seed):
    """The number of moves that came out as torch's, bit by bit. Raises AssertionError with the one that did not."""
    from kvserve.cache.moving_triton import move

    generator, count = torch.Generator().manual_seed(seed), 0
    for case in cases():
        raw, cache = cache_of(*case, generator)
        src, kinds, held, keep = blocks(generator)
        stay = torch.stack([torch.randperm(held, generator=generator)[:keep] for _ in range(H)])
        for kind, dst in kinds.items():
            for slots in (stay.sort(1).values, stay) if kind == "shuffled" else (stay.sort(1).values,):
                before = raw.clone()
                moving.move(cache, src, dst, Merged(slots, None, None, 0), {})
                wanted = raw.clone()
                raw.copy_(before)
                move(cache, src, dst, slots, kind == "others")
                assert torch.equal(raw.view(torch.uint8), wanted.view(torch.uint8)), (case, kind, keep)
                count += 1
    return count


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_equals_torch_in_the_interpreter(seed):
    """In a process of its own: the interpreter is chosen when triton is imported."""
    script = f"from tests.kvserve.test_moving import check_all; print('equal', check_all({seed}))"
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == f"equal {6 * len(list(cases()))}", done.stderr


@pytest.mark.parametrize(
    ("layout", "dtype", "width", "words"),
    [
        ("token-major", torch.bfloat16, 128, torch.int64),
        ("token-major", torch.uint8, 80, torch.int64),
        ("token-major", torch.uint8, 68, torch.int32),
        ("head-major", torch.uint8, 67, torch.uint8),
        ("head-major", torch.float16, 33, torch.int16),
        ("heads first", torch.float32, 33, torch.int32),
    ],
)
def test_words_are_as_wide_as_a_head_allows(layout, dtype, width, words):
    from kvserve.cache.moving_triton import as_words

    _, cache = cache_of(layout, dtype, width, torch.Generator())
    for tokens in cache:
        found = as_words(tokens.view)
        assert found.dtype == words
        assert found.numel() * found.element_size() == tokens.view.numel() * dtype.itemsize
        assert found.data_ptr() == tokens.view.data_ptr()


def test_words_of_the_packed_cpu_layouts():
    from kvserve.cache.moving_triton import as_words

    _, amx = cache_of("amx", torch.bfloat16, 64, torch.Generator())
    assert [as_words(tokens.view).dtype for tokens in amx] == [torch.int32, torch.int16]
    _, vec = cache_of("vec", torch.bfloat16, 64, torch.Generator())
    assert [as_words(tokens.view).dtype for tokens in vec] == [torch.int16, torch.int64]


@pytest.mark.parametrize("merged", [None, "keys", "values"])
def test_on_cuda_the_kernel_moves_what_was_not_merged(merged, monkeypatch):
    calls, stub = [], ModuleType("kvserve.cache.moving_triton")
    stub.move = lambda cache, src, dst, slots, apart: calls.append(("Triton", apart))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.setattr(moving, "_by_torch", lambda *_: calls.append(("torch", None)))
    slots, made, read = torch.arange(4)[None], torch.zeros(1, 4, 2), {"keys": torch.zeros(1)}
    choice = Merged(slots, None, None, 0)._replace(**{merged: made} if merged else {})
    moving.move(None, SimpleNamespace(is_cuda=True), None, choice, read, apart=True)
    assert calls == [("torch", None) if merged else ("Triton", True)]
    assert bool(read) == bool(merged)


def test_on_the_cpu_torch_moves():
    view = torch.zeros(2, 1, 4, 1, 8, 1)
    view[0, 0, :, 0, :, 0] = torch.arange(4.0)[:, None]
    cache = moving.LayerCache(Tokens(view), Tokens(view.clone()))
    moving.move(cache, torch.tensor([0]), torch.tensor([1]), Merged(torch.tensor([[1, 3]]), None, None, 0), {}, True)
    assert view[1, 0, :, 0, 0, 0].tolist() == [1, 3, 0, 0]

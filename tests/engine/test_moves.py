"""Contents survive the trip through our view of the cache, in every dtype that the kernels pack.

Before every step each request's whole cache is read and written back through `LayerCache`. A wrong layout, a
lost byte or a token out of place would change the answer.
"""

import pytest
import torch

from kvserve.engine import compactor
from tests.engine import harness

PROMPTS = [harness.tokens(n, seed=n) for n in (70, 333)]
CACHES = {"float32": ("float32", "auto"), "bfloat16": ("bfloat16", "auto"), "fp8": ("bfloat16", "fp8_e4m3")}


def shuffle_through(runner):
    """Make every step begin by rewriting every running request's cache in place."""
    stock, moved = runner._kv_begin_step, {"tokens": 0}

    def rewriting(kv, batch, rows):
        rows = list(rows)
        stock(kv, batch, rows)
        for req_id, position, _ in rows:
            known = kv.requests.get(req_id)
            for group, layers in kv.layers.items():
                held = position - (known.offset.get(group, 0) if known else 0)
                for layer in layers:
                    if held:
                        blocks = runner._kv_blocks(req_id, group, -(-held // layer.cache.keys.block_size))
                        everything = torch.arange(held).expand(layer.num_kv_heads, -1)
                        for tokens in layer.cache:
                            tokens.write(blocks, tokens.pick(blocks, everything))
                        moved["tokens"] += held

    runner._kv_begin_step = rewriting
    return moved


@pytest.mark.parametrize("cache", CACHES)
def test_identity(cache):
    dtype, cache_dtype = CACHES[cache]
    settings = {"dtype": dtype, "kv_cache_dtype": cache_dtype, "blocks": 128, "max_model_len": 1024}
    stock = harness.start(kv=False, **settings)
    expected = [harness.said(o) for o in harness.generate(stock, PROMPTS, [None, None])]
    harness.stop(stock)
    llm = harness.start(**settings)
    moved = shuffle_through(harness.runner(llm))
    assert [harness.said(o) for o in harness.generate(llm, PROMPTS, [None, None])] == expected
    assert moved["tokens"] > 10_000
    compressed = harness.generate(llm, PROMPTS, ["scissorhands:64", "snapkv:64"])
    assert all(harness.outcome(o)["kept_tokens"] < 130 for o in compressed)
    harness.stop(llm)


@pytest.mark.parametrize("cache", CACHES)
def test_merged_entries_are_the_means(cache, monkeypatch):
    """Elastic Cache: what lies in the cache after a merge is the mean of what lay there before, as the dtype rounds."""
    dtype, cache_dtype = CACHES[cache]
    llm = harness.start(dtype=dtype, kv_cache_dtype=cache_dtype, blocks=128, max_model_len=1024)
    stock, checked = compactor.move, []

    def watched(cache, src, dst, choice, read, apart):
        before = {n: t.decode(t.read(src, 333)) for n, t in cache._asdict().items()}
        stock(cache, src, dst, choice, read, apart)
        for name, tokens in cache._asdict().items():
            after = tokens.decode(tokens.read(dst, 100))
            checked.append((_buckets(before[name], choice.slots[0]), after))

    monkeypatch.setattr(compactor, "move", watched)
    [output] = harness.generate(llm, [PROMPTS[1]], [{"name": "elastic-cache", "budget": 100, "decode": False}], 4)
    assert harness.outcome(output)["merged_tokens"] == 333 - 100
    assert len(checked) == 8  # keys and values of four layers
    step = {"float32": 1e-6, "bfloat16": 2**-8, "fp8": 2**-3}[cache]  # relative distance of neighbours
    for wanted, found in checked:
        assert ((found - wanted).abs() <= step * wanted.abs() + 1e-2 * (cache == "fp8") + 1e-6).all()
        assert (found != 0).any()
    harness.stop(llm)


def _buckets(before, kept):
    """(H, n, D) -> (H, keep, D): means of buckets, one slot after the other."""
    anchors, sums = kept[1:-1].tolist(), {int(s): [before[:, s]] for s in kept}
    for slot in range(before.shape[1]):
        if slot not in sums:
            sums[min(anchors, key=lambda a: (abs(a - slot), a))].append(before[:, slot])
    return torch.stack([torch.stack(sums[int(s)]).mean(0) for s in kept], dim=1)

"""Contents survive the trip through our view of the cache, in every dtype that the kernels pack.

Before every step each request's whole cache is read and written back through `Slots`. A wrong layout, a
lost byte or a token out of place would change the answer.
"""

import pytest
import torch

from tests.engine import harness

PROMPTS = [harness.tokens(n, seed=n) for n in (70, 333)]
CACHES = {"float32": ("float32", "auto"), "bfloat16": ("bfloat16", "auto"), "fp8": ("bfloat16", "fp8_e4m3")}


def shuffle_through(runner):
    """Make every step begin by rewriting every running request's cache in place."""
    stock, moved = runner._update_states, {"tokens": 0}

    def rewriting(scheduler_output):
        result = stock(scheduler_output)
        for i, req_id in enumerate(runner.input_batch.req_ids):
            held = int(runner.input_batch.num_computed_tokens_cpu[i])
            known = runner.kv.requests.get(req_id)
            for group, layers in runner.kv.layers.items():
                held -= known.offset.get(group, 0) if known else 0
                size = runner.input_batch.block_table[group].block_size
                blocks = torch.tensor(runner.requests[req_id].block_ids[group][: -(-held // size)])
                for layer in layers:
                    if held:
                        everything = torch.arange(held).expand(layer.num_kv_heads, -1)
                        for tokens in layer.slots:
                            tokens.write(blocks, tokens.pick(blocks, everything))
                        moved["tokens"] += held
        return result

    runner._update_states = rewriting
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

"""Steps that need no block pass the groups by; prefix cache, blocks and answers are what they would have been."""

import pytest

from tests.engine import harness

POLICIES = [None, "streaming:0.3", "snapkv:64", None, {"name": "pyramidkv", "budget": 0.4, "decode": True, "slack": 16}]
PROMPTS = [harness.tokens(90 + 13 * i, seed=i) for i in range(5)]


def run(engine, looked_at):
    """Answers, blocks free afterwards, and what a second turn finds in the prefix cache; counts vLLM's own look."""
    manager = harness.scheduler(engine).kv_cache_manager
    coordinator = manager.coordinator
    stock = coordinator.allocate_new_blocks
    coordinator.allocate_new_blocks = lambda *args, **kwargs: looked_at.append(1) or stock(*args, **kwargs)
    outputs = harness.generate(engine, PROMPTS, POLICIES, 150)
    coordinator.allocate_new_blocks = stock
    harness.scheduler(engine).check_integrity()
    free = harness.free_blocks(engine)
    turns = [[*p, *harness.said(o)[0], 5] for p, o in zip(PROMPTS, outputs, strict=True)]
    again = harness.generate(engine, turns, [None] * 5, 2, warm=True)
    return [harness.said(o) for o in outputs], free, [o.num_cached_tokens for o in again]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_but_the_work_is_different(asynchronous, monkeypatch):
    found, looks = [], []
    for passing in (True, False):
        if not passing:
            monkeypatch.setattr("kvserve.engine.scheduler.pass_by", lambda manager: None)
        looks.append([])
        with harness.scheduling(asynchronous):
            engine = harness.start(blocks=4 * 128, max_model_len=2048, options={"groups": 4})
        found.append(run(engine, looks[-1]))
        harness.stop(engine)
    assert found[0] == found[1]
    assert any(cached > len(prompt) for cached, prompt in zip(found[0][2], PROMPTS, strict=True))  # of answers too
    assert len(looks[0]) < len(looks[1]) / 8  # a block has 32 tokens

"""(b) One decode step as the context grows: it should not, once a budget holds the cache.

Prompts are computed once and then found in the prefix cache, which changes nothing for decode steps; the
steps timed lie between two compactions (their cost is part d's). Lengths and policies take turns.
"""

import statistics
from pathlib import Path
from typing import Any

from bench.engine import BenchEngine, prompt
from bench.policies import BUDGETED, spoken
from bench.sizes import BLOCK, BenchSizes
from measuring.repetitions import Repetitions

PART = "b"
SETTLE = 4
"""Steps before the timed ones: the compaction of the prompt, and scissorhands' first round."""


def measure(sizes: BenchSizes, repeats: int, model: Path, book: Repetitions) -> None:
    tokens = 2 * sum(sizes.contexts) + max(sizes.contexts)
    longest = max(sizes.contexts) + SETTLE + sizes.context_steps + BLOCK
    engine = BenchEngine(model, blocks=tokens // BLOCK, max_len=longest, chunk=sizes.chunk, enable_prefix_caching=True)
    policies = {"full": None, **{spoken(name, sizes): BUDGETED[name](sizes) for name in BUDGETED}}
    try:
        for context in sizes.contexts:
            _step(engine, context, None, sizes)
        for _ in range(repeats):
            for name, policy in policies.items():
                _repetition(engine, name, policy, sizes, book)
    finally:
        engine.stop()


def _repetition(
    engine: BenchEngine, name: str, policy: dict[str, Any] | None, sizes: BenchSizes, book: Repetitions
) -> None:
    first: float | None = None
    for context in sizes.contexts:
        step = _step(engine, context, policy, sizes)
        first = first or step
        book.add(PART, f"{name} @ {context}", step_ms=1e3 * step, tokens_per_s=1 / step, ratio=step / first)


def _step(engine: BenchEngine, context: int, policy: dict[str, Any] | None, sizes: BenchSizes) -> float:
    """Median seconds of a decode step of one request of this logical length."""
    engine.add(prompt(context, context), policy, SETTLE + sizes.context_steps + BLOCK)
    engine.prefill()
    engine.steps(SETTLE)
    seconds = statistics.median(engine.steps(sizes.context_steps))
    engine.drop()
    return seconds

"""(c) A pool that holds three uncompressed requests: how many run at once, and how long all take.

Timed with the heavy model. How many run at once is counted with the lightest one and more, longer
requests, since it depends on blocks and not on speed: with few requests, or ones that end before the last has
been prefilled, the workload would set the limit and not the pool.
"""

from pathlib import Path
from typing import Any

from bench.arithmetic import Held, allowed
from bench.engine import BenchEngine, prompt
from bench.policies import BUDGETED, Request, spoken
from bench.sizes import BLOCK, SLACK, BenchSizes
from bench.watch import watched
from measuring.repetitions import Repetitions

PART = "c"
PREFILLS = {"streaming": ("whole", "chunks")}
"""Compacting between chunks is what a tight pool wants; one policy shows what the default costs."""


def cases(sizes: BenchSizes) -> dict[str, Request | None]:
    """Name of the case -> the policy of its requests."""
    found: dict[str, Request | None] = {"full": None}
    for name, request in BUDGETED.items():
        for prefill in PREFILLS.get(name, ("chunks",)):
            found[f"{spoken(name, sizes)} {prefill}"] = {**request(sizes), "prefill": prefill}
    return found


def measure(sizes: BenchSizes, repeats: int, model: Path, light: Path, book: Repetitions) -> None:
    _count(sizes, light, book)
    engine = _engine(model, sizes)
    try:
        for repetition in range(repeats):
            _repetition(engine, repetition, sizes, book)
    finally:
        engine.stop()


def pool_blocks(sizes: BenchSizes) -> int:
    return sizes.pool_holds * -(-(sizes.pool_prompt + sizes.pool_output) // BLOCK)


def _engine(model: Path, sizes: BenchSizes) -> BenchEngine:
    return BenchEngine(
        model,
        blocks=pool_blocks(sizes),
        max_len=sizes.pool_prompt + max(sizes.pool_output, sizes.crowd_output),
        chunk=sizes.chunk,
        enable_prefix_caching=False,
    )


def _count(sizes: BenchSizes, light: Path, book: Repetitions) -> None:
    """Most requests that ran at once, and what block arithmetic allows. The same every time: counted once."""
    engine = _engine(light, sizes)
    try:
        for name, policy in cases(sizes).items():
            output = sizes.crowd_output if policy else sizes.pool_output
            most = min(sizes.crowd, allowed(_held(policy, output, sizes), pool_blocks(sizes)))
            with watched(engine) as watch:
                at_once = _at_once(engine, policy, output, sizes)
            preempted = watch.preempted
            book.add(PART, name, at_once=at_once, allowed=most, of_allowed=at_once / most, preempted=preempted)
    finally:
        engine.stop()


def _held(policy: Request | None, output: int, sizes: BenchSizes) -> Held:
    prompt_tokens = sizes.pool_prompt
    if policy is None:
        return Held(prefill=prompt_tokens + output, decode=prompt_tokens + output)
    # scissorhands acts as soon as it is over its budget, the others once they are over it by the slack
    over = 1 if policy["name"] == "scissorhands" else SLACK
    chunked = min(prompt_tokens, sizes.budget + SLACK + sizes.chunk)
    return Held(
        prefill=prompt_tokens if policy["prefill"] == "whole" else chunked,
        decode=sizes.budget + over + 1,
    )


def _at_once(engine: BenchEngine, policy: Request | None, output: int, sizes: BenchSizes) -> int:
    for i in range(sizes.crowd):
        engine.add(prompt(sizes.pool_prompt, i), policy, output)
    most = 0
    while engine.tokens:
        engine.step()
        most = max(most, len(engine.scheduler.running))
        if most == sizes.crowd:
            engine.drop()
    return most


def _repetition(engine: BenchEngine, repetition: int, sizes: BenchSizes, book: Repetitions) -> None:
    full: float | None = None
    for name, policy in cases(sizes).items():
        seconds, peak = _together(engine, policy, repetition, sizes)
        full = full or seconds
        tokens = sizes.batch * sizes.pool_output
        book.add(
            PART, name, total_s=seconds, tokens_per_s=tokens / seconds, speed_up=full / seconds, timed_at_once=peak
        )


def _together(engine: BenchEngine, policy: Any, repetition: int, sizes: BenchSizes) -> tuple[float, int]:
    """Seconds until all requests, sent at once, have ended; and the most that ran at once."""
    for i in range(sizes.batch):
        engine.add(prompt(sizes.pool_prompt, (repetition, i)), policy, sizes.pool_output)
    seconds, peak = 0.0, 0
    while engine.tokens:
        seconds += engine.step()
        peak = max(peak, len(engine.scheduler.running))
    return seconds, peak

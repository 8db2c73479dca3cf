"""(d) What compactions cost: seconds per plan, and their share of wall time.

A plan's time is that of the worker's `Compactor.run` plus the scheduler's choice of blocks. Shares are of
prefill (the step that follows the prompt) and of decoding (all after it), one request and several.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.book import Book
from bench.engine import Engine, prompt
from bench.policies import BUDGETED, Request, spoken
from bench.sizes import BLOCK, Sizes

PART = "d"


def measure(sizes: Sizes, repeats: int, model: Path, book: Book) -> None:
    length = sizes.compaction_prompt + sizes.compaction_output
    engine = Engine(model, blocks=(sizes.batch + 1) * (length // BLOCK + 1), max_len=length, chunk=sizes.chunk)
    try:
        for repetition in range(repeats):
            for name, request in BUDGETED.items():
                engine.forget()  # the first request computes the prompt; the batch finds it in the cache
                for batch in (1, sizes.batch):
                    case = f"{spoken(name, sizes)}, {batch} at once"
                    _repetition(engine, case, request(sizes), batch, repetition, sizes, book)
    finally:
        engine.stop()


def _repetition(
    engine: Engine, case: str, policy: Request, batch: int, repetition: int, sizes: Sizes, book: Book
) -> None:
    for _ in range(batch):
        engine.add(prompt(sizes.compaction_prompt, repetition), policy, sizes.compaction_output)
    with stopwatch(engine) as watch:
        prefill = engine.prefill()
        # Prompts are compacted by the step after: it belongs to the prefill.
        prefill += engine.step()
        early = watch.take()
        decode = engine.finish()
        late = watch.take()
    extra = {"prefill_plan_ms": 1e3 * statistics.median(early.runs)} if early.runs else {}
    if batch == 1:
        extra["prefill_share"] = early.seconds / prefill
    book.add(
        PART,
        case,
        plans=len(late.runs),
        plan_ms=1e3 * statistics.median(late.runs) if late.runs else 0.0,
        share=late.seconds / decode,
        step_ms=1e3 * decode / max(1, sizes.compaction_output - 2),
        **extra,
    )


class Watch:
    """Seconds spent since the last look."""

    def __init__(self) -> None:
        self.runs: list[float] = []  # of each plan in the worker
        self.planning = 0.0  # in the scheduler

    def ran(self, seconds: float) -> None:
        self.runs.append(seconds)

    def planned(self, seconds: float) -> None:
        self.planning += seconds

    @property
    def seconds(self) -> float:
        return sum(self.runs) + self.planning

    def take(self) -> "Watch":
        taken = Watch()
        taken.runs, taken.planning = self.runs, self.planning
        self.runs, self.planning = [], 0.0
        return taken


@contextmanager
def stopwatch(engine: Engine) -> Iterator[Watch]:
    """Time the engine's compactions while inside."""
    watch, compactor, scheduler = Watch(), engine.compactor, engine.scheduler

    compactor.run = _timed(compactor.run, watch.ran)
    scheduler._kv_plans_of = _timed(scheduler._kv_plans_of, watch.planned)
    try:
        yield watch
    finally:
        del compactor.run, scheduler._kv_plans_of


def _timed(function: Callable[..., Any], note: Callable[[float], None]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        started = time.perf_counter()
        result = function(*args)
        note(time.perf_counter() - started)
        return result

    return timed

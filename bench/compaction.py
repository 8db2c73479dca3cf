"""(d) What compactions cost: seconds per plan, and their share of wall time.

A plan's time is that of the worker's `Compactor.run`; shares count the scheduler's planning too. They are of
prefill (the step that follows the prompt) and of decoding (all after it), one request and several.
"""

import statistics
from pathlib import Path

from bench.engine import BenchEngine, prompt
from bench.policies import BUDGETED, Request, spoken
from bench.sizes import BLOCK, BenchSizes
from bench.watch import watched
from measuring.repetitions import Repetitions

PART = "d"


def measure(sizes: BenchSizes, repeats: int, model: Path, book: Repetitions) -> None:
    length = sizes.compaction_prompt + sizes.compaction_output
    engine = BenchEngine(model, blocks=(sizes.batch + 1) * (length // BLOCK + 1), max_len=length, chunk=sizes.chunk)
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
    engine: BenchEngine, case: str, policy: Request, batch: int, repetition: int, sizes: BenchSizes, book: Repetitions
) -> None:
    for _ in range(batch):
        engine.add(prompt(sizes.compaction_prompt, repetition), policy, sizes.compaction_output)
    with watched(engine) as watch:
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

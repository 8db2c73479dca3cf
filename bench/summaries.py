"""(g) Summary tokens (`ksa`) on the embedded model: reading and generating against a request without a policy.

Some requests of one length at once, without a policy and with `ksa` in turns, in the opposite order the next time;
ratios are within a turn. The summary pass is timed where it is made, for prompts and while generating alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.engine import BenchEngine, prompt
from bench.policies import Request
from bench.roster import FULL, LAYERS
from bench.sizes import BLOCK, BenchSizes
from bench.watch import timed
from kvserve.summary import file as summary_file
from measuring.repetitions import Repetitions
from models import MINI

PART, KSA = "g", "ksa"


def measure(sizes: BenchSizes, repeats: int, book: Repetitions) -> None:
    if not (MINI / summary_file.BESIDE).is_file():
        book.refuse(PART, KSA, "the embedded model has no summary parameters")
        return
    longest, most = max(sizes.summary_prompts) + sizes.summary_output, max(sizes.summary_batches)
    engine = BenchEngine(
        MINI,
        groups=LAYERS,
        blocks=most * LAYERS * (longest // BLOCK + 2),
        max_len=longest,
        chunk=sizes.chunk,
        enable_prefix_caching=False,
        load_format="auto",
        dtype="auto",
    )
    try:
        _run(engine, None, sizes.summary_prompts[0], 1, 0, 8)  # not counted: the first steps of their kind are slow
        for repetition in range(repeats):
            for batch in sizes.summary_batches:
                for length in sizes.summary_prompts:
                    _turn(engine, length, batch, repetition, sizes.summary_output, book)
    finally:
        engine.stop()


def _turn(engine: BenchEngine, length: int, batch: int, repetition: int, generate: int, book: Repetitions) -> None:
    cases: dict[str, Request | None] = {FULL: None, KSA: {"name": KSA}}
    order = list(cases)[:: 1 if repetition % 2 == 0 else -1]
    runs = {name: _run(engine, cases[name], length, batch, repetition, generate) for name in order}
    for name, run in runs.items():
        full = runs[FULL]
        ratios = {
            "of_full": run["tokens_per_s"] / full["tokens_per_s"],
            "prefill_of_full": full["prefill_ms"] / run["prefill_ms"],
        }
        book.add(PART, f"{name}, {batch} of {length}", **run, **(ratios if name != FULL else {}))


def _run(
    engine: BenchEngine, policy: Request | None, length: int, batch: int, repetition: int, generate: int
) -> dict[str, float]:
    requests = [engine.add(prompt(length, f"{repetition}/{i}"), policy, generate) for i in range(batch)]
    with _passes(engine) as seconds:
        prefill = engine.prefill()
        reading = sum(seconds)
        seconds.clear()
        decode = sum(engine.steps(generate - 2))
        held = _held(engine, requests[-1], length + generate - 2)  # others, read before it, may have ended
        decode += engine.finish()
    found = {"prefill_ms": 1e3 * prefill, "tokens_per_s": batch * (generate - 1) / decode}
    if policy is None:
        return found
    shares = {"pass_of_prefill": reading / prefill, "pass_of_decode": sum(seconds) / decode}
    return {**found, **shares, "entries": held[0], "entry_share": held[0] / held[1], "byte_share": held[2]}


def _held(engine: BenchEngine, name: str, logical: int) -> tuple[float, int, float]:
    """Entries per layer (mean), tokens, bytes over those of all tokens."""
    [req_id] = [r for r in engine.scheduler.requests if r.startswith(name)]
    resident, full = engine.scheduler.kv.held_bytes(req_id, logical)
    return engine.scheduler.kv.mean_physical(req_id, logical), logical, resident / full


@contextmanager
def _passes(engine: BenchEngine) -> Iterator[list[float]]:
    """Seconds of every layer of every summary pass while inside."""
    seconds: list[float] = []
    maker = engine.compactor.summaries
    maker._pass = timed(maker._pass, seconds.append)
    try:
        yield seconds
    finally:
        del maker._pass

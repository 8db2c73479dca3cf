"""(e) Every installed policy on the embedded model: its rounds, its share of the time, its tokens/s.

One request at a time. For each prompt length and budget a request without a policy, one of `streaming` and one
of each other policy take turns, in the opposite order the next time; ratios are to these two of the same turn."""

import statistics
import time
from typing import NamedTuple

from bench.engine import BenchEngine, prompt
from bench.policies import Request, comparable, refusals
from bench.sizes import BLOCK, BenchSizes
from bench.watch import HeldBytes, watched
from kvserve.policy import registry
from measuring.repetitions import Repetitions
from models import MINI

PART = "e"
LAYERS = 4
"""Of the embedded model; each has block tables of its own, so that policies with uneven layers run too."""

FULL, CONTROL = "full", "streaming"


class PolicyRun(NamedTuple):
    """One request from its first chunk to its last token."""

    prefill: float  # seconds until the first token
    decode: float  # from then on
    early: HeldBytes  # the compaction of the prompt
    late: HeldBytes
    cpu: float  # seconds of this process in both: what others do on a shared machine is not in it
    freed: int  # blocks of all layers


def measure(sizes: BenchSizes, repeats: int, book: Repetitions) -> None:
    longest = max(sizes.policy_prompts) + sizes.policy_output
    engine = BenchEngine(
        MINI,
        groups=LAYERS,
        blocks=LAYERS * (longest // BLOCK + 2),
        max_len=longest,
        chunk=sizes.chunk,
        enable_prefix_caching=False,  # policies that gather compute the whole prompt; so do the others here
        load_format="auto",
        dtype="auto",
    )
    try:
        policies = served(engine, book)
        for length in sizes.policy_prompts:
            _prefill(engine, length)  # not counted: the first steps of their kind are slow
        for repetition in range(min(repeats, sizes.policy_repeats)):
            for length in sizes.policy_prompts:
                for budget in sizes.policy_budgets:
                    _turn(engine, policies, length, budget, repetition, sizes, book)
    finally:
        engine.stop()


def served(engine: BenchEngine, book: Repetitions) -> dict[str, Request]:
    """The requests of all compressing policies that this engine serves; the others are booked with the reason."""
    refused = refusals(engine.scheduler.kv.facts)
    for name, why in refused.items():
        book.refuse(PART, name, why)
    found = [name for name, policy in registry.installed().items() if policy.compresses and name not in refused]
    return {name: comparable(name) for name in sorted(found, key=lambda name: (name != CONTROL, name))}


def _turn(
    engine: BenchEngine,
    policies: dict[str, Request],
    length: int,
    budget: float,
    repetition: int,
    sizes: BenchSizes,
    book: Repetitions,
) -> None:
    requests = {FULL: None, **{name: {**request, "budget": budget} for name, request in policies.items()}}
    order = list(requests)[:: 1 if repetition % 2 == 0 else -1]
    runs = {name: _run(engine, requests[name], length, repetition, sizes.policy_output) for name in order}
    for name, run in runs.items():
        case = f"{name} @ {length}" if name == FULL else f"{name}:{budget:g} @ {length}"
        book.add(PART, case, **_quantities(run, runs, sizes.policy_output - 1))


def _run(engine: BenchEngine, policy: Request | None, length: int, seed: int, generate: int) -> PolicyRun:
    before, cpu = _freed(engine, policy), time.process_time()
    engine.add(prompt(length, seed), policy, generate)
    with watched(engine) as watch:
        prefill = engine.prefill()
        # The prompt is compacted by the step after.
        first = engine.step()
        early = watch.take()
        decode = first + engine.finish()
        late = watch.take()
    return PolicyRun(prefill, decode, early, late, time.process_time() - cpu, _freed(engine, policy) - before)


def _freed(engine: BenchEngine, policy: Request | None) -> int:
    return int(engine.scheduler.kv.totals.of(policy["name"]).blocks_freed) if policy else 0


def _quantities(run: PolicyRun, runs: dict[str, PolicyRun], tokens: int) -> dict[str, float]:
    rounds = [*run.early.runs, *run.late.runs]
    compaction = {
        "rounds": len(rounds),
        "first_round_ms": 1e3 * run.early.runs[0] if run.early.runs else 0.0,
        "round_ms": 1e3 * statistics.median(run.late.runs) if run.late.runs else 0.0,
        "share": (run.early.seconds + run.late.seconds) / (run.prefill + run.decode),
        "freed": run.freed,
    }
    return {
        "tokens_per_s": tokens / run.decode,
        "of_full": runs[FULL].decode / run.decode,
        "of_streaming": runs[CONTROL].decode / run.decode if CONTROL in runs else 0.0,
        "cpu_of_full": runs[FULL].cpu / run.cpu,
        "prefill_ms": 1e3 * run.prefill,
        **(compaction if rounds else {}),
    }


def _prefill(engine: BenchEngine, length: int) -> None:
    engine.add(prompt(length), None, 2)
    engine.prefill()
    engine.finish()

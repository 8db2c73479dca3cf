"""(f) What gathering evidence from all queries of a prompt does to its prefill.

On the embedded model, in which attention is most of a prefill, and on one layer in the shape of an 8B model, in
which it is not. A turn is one prompt without gathering (`streaming`) and one of each case; the next turn goes in
the opposite order; ratios are within a turn.
"""

import time
from pathlib import Path
from typing import NamedTuple

from bench.engine import BenchEngine, prompt
from bench.model import configure
from bench.policies import Request, comparable, refusals
from bench.roster import CONTROL, LAYERS
from bench.sizes import BLOCK, BenchSizes
from kvserve.policy import Mass, Moments, registry
from kvserve.policy.evidence import find
from measuring.repetitions import Repetitions
from models import MINI

PART = "f"
EMBEDDED, WIDE = "embedded", "8B layer"  # how case names begin


class Prefill(NamedTuple):
    seconds: float
    cpu: float  # of this process: what others do on a shared machine is not in it


def measure(sizes: BenchSizes, repeats: int, folder: Path, book: Repetitions) -> None:
    _on(EMBEDDED, MINI, {"load_format": "auto", "dtype": "auto"}, sizes.gather_every, sizes, repeats, book)
    every = (sizes.gather_every[0], sizes.gather_every[-1])
    turns = min(repeats, sizes.wide_repeats)
    _on(WIDE, wide(folder, sizes), {"dtype": "bfloat16"}, every, sizes, turns, book)


def wide(folder: Path, sizes: BenchSizes) -> Path:
    """One layer with the widths of Qwen3-8B, four query heads per KV head."""
    hidden = sizes.wide_hidden
    return configure(folder / "wide", layers=1, heads=hidden // 512, hidden=hidden, group=4, inner=3 * hidden)


def _on(
    name: str,
    model: Path,
    settings: dict[str, str],
    every: tuple[int, ...],
    sizes: BenchSizes,
    repeats: int,
    book: Repetitions,
) -> None:
    length, groups = sizes.gather_prompt, LAYERS if name == EMBEDDED else 1
    engine = BenchEngine(
        model,
        groups=groups,
        blocks=groups * (length // BLOCK + 2),
        max_len=length + 8,
        chunk=sizes.gather_chunk,
        enable_prefix_caching=False,  # policies that gather compute the whole prompt; so does the control here
        **settings,
    )
    try:
        cases = {CONTROL: {"name": CONTROL}, **gathering(served(engine), every)}
        _prefill(engine, length, cases[CONTROL])  # not counted: the first steps of their kind are slow
        for repetition in range(repeats):
            order = list(cases)[:: 1 if repetition % 2 == 0 else -1]
            runs = {case: _prefill(engine, length, cases[case]) for case in order}
            for case, run in runs.items():
                book.add(PART, f"{name}: {case}", **_quantities(run, runs[CONTROL]))
    finally:
        engine.stop()


def served(engine: BenchEngine) -> dict[str, Request]:
    """The requests of all policies that this engine serves."""
    refused = refusals(engine.scheduler.kv.facts)
    return {name: comparable(name) for name in sorted(registry.installed()) if name not in refused}


def gathering(policies: dict[str, Request], every: tuple[int, ...]) -> dict[str, Request]:
    """Case -> request of each policy that gathers, for the numbers of queries between two that count."""
    found: dict[str, Request] = {}
    for name, request in policies.items():
        policy = registry.get(name).model_validate({})
        if find(Mass, policy.evidence) and "every" in type(policy).model_fields:
            found |= {f"{name} every {n}": {**request, "every": n} for n in every}
        elif find(Mass, policy.evidence) or find(Moments, policy.evidence):
            found[name] = request
    return found


def _prefill(engine: BenchEngine, length: int, policy: Request) -> Prefill:
    cpu = time.process_time()
    engine.add(prompt(length), policy, 2)
    seconds = engine.prefill()
    cpu = time.process_time() - cpu
    engine.finish()
    return Prefill(seconds, cpu)


def _quantities(run: Prefill, control: Prefill) -> dict[str, float]:
    ratios = {"prefill_ratio": run.seconds / control.seconds, "prefill_cpu_ratio": run.cpu / control.cpu}
    return {"prefill_ms": 1e3 * run.seconds, **(ratios if run is not control else {})}

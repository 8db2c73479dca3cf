"""`python -m bench`: measure, print one table, write JSON."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.report import SpeedReport
from bench.sizes import FULL_RUN, QUICK, SHORT, BenchSizes
from measuring.command import INTERRUPTED, at_least, defaults, listed, measured
from measuring.machine import about
from measuring.repetitions import Repetitions

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # the same on every machine, and steady on a shared one
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is stepped in this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
"""Defaults that must stand before vLLM is imported; what the caller has set stays."""

PARTS = "abcdefgh"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m bench", description=__doc__)
    made.add_argument(
        "--parts",
        default="a,b,c,d",
        help="a: stock vLLM against kvserve without a policy; b: step time over context; c: a small pool; "
        "d: cost of compactions; e: every installed policy; f: what gathering evidence adds to a prefill; "
        "g: summary tokens; h: a step of 256 requests; the latter four usually with an --out of their own "
        "(default: %(default)s)",
    )
    made.add_argument("--repeats", type=int, default=5, help="repetitions, in (e) a few at most (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/bench.json"), help="JSON; the table beside it as .md")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_true", help="(e) with fewer tokens, once")
    form.add_argument("--quick", action="store_true", help="tiny sizes: proves that it runs, measures nothing")
    return made


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; exits with a message naming the flag and what is allowed."""
    made = parser()
    chosen = made.parse_args(argv)
    chosen.parts = listed(made, "--parts", chosen.parts, tuple(PARTS))
    at_least(made, chosen, repeats=1)
    return chosen


def run(parts: Sequence[str], sizes: BenchSizes, repeats: int, book: Repetitions) -> None:
    from bench import compaction, context, gathering, model, overhead, pool, roster, summaries, width

    with tempfile.TemporaryDirectory() as folder:
        heavy, light = model.heavy(Path(folder), sizes), model.light(Path(folder))
        if "a" in parts:
            overhead.measure(sizes, repeats, heavy, book)
        if "b" in parts:
            context.measure(sizes, repeats, heavy, book)
        if "c" in parts:
            pool.measure(sizes, repeats, heavy, light, book)
        if "d" in parts:
            compaction.measure(sizes, repeats, heavy, book)
        if "e" in parts:
            roster.measure(sizes, repeats, book)
        if "f" in parts:
            gathering.measure(sizes, repeats, Path(folder), book)
        if "g" in parts:
            summaries.measure(sizes, repeats, book)
        if "h" in parts:
            width.measure(sizes, repeats, model.tiny(Path(folder)), book)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = options(argv)
    defaults(ENVIRONMENT)
    sizes, book = QUICK if chosen.quick else SHORT if chosen.short else FULL_RUN, Repetitions()
    report = SpeedReport(book, sizes, about(), chosen.out)
    return 0 if measured(lambda: run(chosen.parts, sizes, chosen.repeats, book), report) else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

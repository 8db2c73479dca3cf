"""`python -m bench`: measure, print one table, write JSON."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.book import Book
from bench.machine import about
from bench.report import Report
from bench.sizes import FULL_RUN, QUICK, SHORT, Sizes

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # the same on every machine, and steady on a shared one
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is stepped in this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
"""Defaults that must stand before vLLM is imported; what the caller has set stays."""

PARTS = "abcdefg"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m bench", description=__doc__)
    made.add_argument(
        "--parts",
        default="a,b,c,d",
        help="a: stock vLLM against kvserve without a policy; b: step time over context; c: a small pool; "
        "d: cost of compactions; e: every installed policy; f: what gathering evidence adds to a prefill; "
        "g: summary tokens; the latter three usually with an --out of their own "
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
    chosen.parts = [part.strip() for part in chosen.parts.split(",")]
    unknown = [part for part in chosen.parts if part not in tuple(PARTS)]
    if unknown:
        made.error(f"--parts names {unknown}; allowed: {', '.join(PARTS)}")
    if chosen.repeats < 1:
        made.error(f"--repeats is {chosen.repeats}; allowed: 1 or more")
    return chosen


def run(parts: Sequence[str], sizes: Sizes, repeats: int, book: Book) -> None:
    from bench import compaction, context, gathering, model, overhead, pool, roster, summaries

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


def main(argv: Sequence[str] | None = None) -> int:
    chosen = options(argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sizes, book = QUICK if chosen.quick else SHORT if chosen.short else FULL_RUN, Book()
    report = Report(book, sizes, about(), chosen.out)
    try:
        run(chosen.parts, sizes, chosen.repeats, book)
        report.complete = True
    except KeyboardInterrupt:
        print("interrupted: writing what was measured", file=sys.stderr)
    finally:
        report.write()
    print(report.text())
    return 0 if report.complete else 130


if __name__ == "__main__":
    sys.exit(main())

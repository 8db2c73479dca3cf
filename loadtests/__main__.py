"""`python -m loadtests`: put the server under load, print one table, write JSON and plots."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from loadtests.measurements import Measurements
from loadtests.sizes import LONG, QUICK, SHORT, LoadSizes
from measuring.command import INTERRUPTED, at_least, defaults, listed, measured
from measuring.machine import about

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # generators included: the machine is small
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
"""Defaults for the server and the generators; what the caller has set stays."""

SCENARIOS = ("ample", "tight", "mixed", "prefix", "decode", "churn", "soak")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m loadtests", description=__doc__)
    made.add_argument(
        "--scenarios",
        default=",".join(SCENARIOS),
        help="ample, tight: throughput and goodput of every policy while the pool shrinks; mixed: several policies at "
        "once; prefix: shared prefixes; decode: long answers; churn: clients that vanish; soak: steady traffic with a "
        "leak check (default: %(default)s)",
    )
    made.add_argument("--out", type=Path, default=Path("results/loadtest.json"), help="JSON; table and plots beside it")
    made.add_argument("--repeats", type=int, help="of ample and tight (default: 1, with --long 3)")
    form = made.add_mutually_exclusive_group()
    form.add_argument(
        "--long",
        action="store_true",
        help="more pools, repetitions and requests, a soak of an hour: two to three hours",
    )
    form.add_argument("--quick", action="store_true", help="tiny sizes: proves that it runs, measures nothing")
    return made


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed and checked; exits with a message naming the flag and what is allowed."""
    made = parser()
    chosen = made.parse_args(argv)
    chosen.scenarios = listed(made, "--scenarios", chosen.scenarios, SCENARIOS)
    at_least(made, chosen, repeats=1)
    missing = [package for package in ("guidellm", "matplotlib", "vllm") if find_spec(package) is None]
    if missing:
        made.error(f"{', '.join(missing)} not installed; the extra `load` brings guidellm and matplotlib")
    return chosen


def plan(scenarios: Sequence[str], sizes: LoadSizes) -> dict[float, list[str]]:
    """Pool share -> what is measured with it. What needs room goes to the largest pool, the rest to the smallest."""
    found: dict[float, list[str]] = {}
    for share in sizes.shares:
        wanted = ["ample" if share >= 1 else "tight"]
        wanted += ["mixed", "prefix"] if share == sizes.shares[0] else []
        wanted += ["decode", "churn", "soak"] if share == sizes.shares[-1] else []
        if parts := [name for name in wanted if name in scenarios]:
            found[share] = parts
    return found


def run(scenarios: Sequence[str], sizes: LoadSizes, notes: Measurements) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for share, parts in plan(scenarios, sizes).items():
            _serve(share, parts, sizes, notes, Path(folder))


def _serve(share: float, parts: Sequence[str], sizes: LoadSizes, notes: Measurements, folder: Path) -> None:
    """One server, and all that is measured with its pool."""
    from loadtests.generator import Generator, Target
    from loadtests.server import serving
    from loadtests.stage import Stage, calibrate, say

    pool = sizes.pool(share)
    print(f"pool of {pool} blocks ({100 * share:g} %): starting the server", file=sys.stderr, flush=True)
    with serving(pool, sizes.longest, folder / f"server-{pool}.log") as server:
        generator = Generator(server.url, folder, notes.commands)
        if not notes.targets:
            notes.targets = calibrate(generator, sizes.crossover)._asdict()
        stage = Stage(server, generator, sizes, notes, Target(**notes.targets), share)
        for part in parts:
            say(f"({part})")
            _scenario(part, folder)(stage)


def _scenario(name: str, folder: Path) -> Callable[..., None]:
    from loadtests import churn, crossover, decode, mixed, prefix, soak

    if name == "soak":
        return partial(soak.measure, folder=folder)
    rooms = {"ample": crossover, "tight": crossover, "mixed": mixed, "prefix": prefix, "decode": decode, "churn": churn}
    measure: Callable[..., None] = rooms[name].measure
    return measure


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 well, 1 something that must hold does not, 130 interrupted."""
    chosen = options(argv)
    defaults(ENVIRONMENT)
    from loadtests.generator import prepare
    from loadtests.report import LoadReport

    prepare()
    sizes, notes = LONG if chosen.long else QUICK if chosen.quick else SHORT, Measurements()
    sizes = replace(sizes, repeats=chosen.repeats or sizes.repeats)
    report = LoadReport(notes, sizes, about(), chosen.out)
    if not measured(lambda: run(chosen.scenarios, sizes, notes), report):
        return INTERRUPTED
    return 0 if notes.sound else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as with Ctrl-C: written, nothing left running
    sys.exit(main())

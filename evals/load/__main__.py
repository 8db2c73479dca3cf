"""`python -m evals.load`: in a pool that is too small, how fast answers come under each policy, and how many are right.

All requests of a turn are sent at once: needles in essays, each answered with so many tokens. `full` has the first and
the last run of every turn, and ratios are to the mean of the two, so that what drifts on the machine hits both sides.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from evals.items import drawn, form_of, haystack
from evals.load.asking import asked
from evals.load.report import AccuracyAndSpeed
from evals.server import BLOCK, serving
from measuring.command import INTERRUPTED, at_least, measured
from measuring.machine import about
from measuring.repetitions import Repetitions
from measuring.server import ServerDied
from models.fetch import located
from models.fetchable import DEFAULT
from models.wheels import FetchError

FULL = "full"
TASK = "niah_single"
FIRST = 100_000
"""Number of the first item: none of those by which `kvserve eval` ranks policies."""


@dataclass(frozen=True)
class LoadSettings:
    """Lengths in tokens; fits: requests that the pool holds uncompressed."""

    model: str
    dtype: str
    policies: tuple[str, ...]
    length: int
    answer: int
    requests: int
    fits: int
    turns: int

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together, at most: lengths are guessed from words."""
        return self.length * 5 // 4 + self.answer

    @property
    def blocks(self) -> int:
        """Of the pool, one of which vLLM keeps for itself."""
        return max(self.fits * -(-(self.length + self.answer) // BLOCK), -(-self.longest // BLOCK)) + 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m evals.load", description=__doc__, allow_abbrev=False)
    made.add_argument("model", nargs="?", default=DEFAULT, help="a folder, or a fetched model (default: %(default)s)")
    made.add_argument("--policies", nargs="+", required=True, metavar="POLICY", help="snapkv:0.25, say; full is added")
    made.add_argument("--length", type=int, default=1024, metavar="N", help="tokens of a prompt (default: %(default)s)")
    made.add_argument("--answer", type=int, default=64, metavar="N", help="tokens of an answer (default: %(default)s)")
    made.add_argument("--requests", type=int, default=16, metavar="N", help="at once (default: %(default)s)")
    made.add_argument("--fits", type=int, default=4, metavar="N", help="that the pool holds (default: %(default)s)")
    made.add_argument("--turns", type=int, default=3, metavar="N", help="of all policies (default: %(default)s)")
    made.add_argument("--dtype", default="bfloat16", help="of the server (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/load.json"), help="(default: %(default)s)")
    return made


def chosen(argv: Sequence[str] | None) -> tuple[LoadSettings, Path]:
    """Parsed and checked; exits with a message that names the flag and what is allowed."""
    made = parser()
    args = made.parse_args(argv)
    at_least(made, args, length=256, answer=16, requests=1, fits=1, turns=1)
    given = {name: value for name, value in vars(args).items() if name not in ("out", "policies")}
    policies = tuple(policy for policy in dict.fromkeys(args.policies) if policy != FULL)
    return LoadSettings(**given, policies=policies), args.out


async def run(settings: LoadSettings, url: str, found: Repetitions) -> None:
    """All turns. Raises openai.BadRequestError for a policy that the server refuses."""
    for turn in range(settings.turns):
        order = settings.policies[:: 1 if turn % 2 == 0 else -1]
        first = FIRST + turn * settings.requests
        items = list(drawn(haystack(TASK), TASK, form_of(TASK), settings.length, settings.requests, first=first))
        waiting = tqdm((FULL, *order, FULL), f"turn {turn + 1}", unit="policy")
        runs = [(policy, await asked(url, items, policy, settings.answer)) for policy in waiting]
        reference = (runs[0][1].tokens_per_s + runs[-1][1].tokens_per_s) / 2
        for policy, outcome in runs:
            found.add("load", policy, **outcome.quantities(), of_full=outcome.tokens_per_s / reference)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 1 no server or no model, 2 wrong usage, 130 interrupted."""
    settings, out = chosen(argv)
    found = Repetitions()
    report = AccuracyAndSpeed(found, replace(settings, model=Path(settings.model).name), about(), out)
    flags = [settings.model, "--dtype", settings.dtype, "--num-gpu-blocks-override", str(settings.blocks)]
    flags += ["--max-model-len", str(settings.longest)]

    def measure() -> None:
        located(settings.model)
        print("evals.load: starting a server", file=sys.stderr)
        with serving(flags) as url:
            asyncio.run(run(settings, url, found))

    try:
        return 0 if measured(measure, report) else INTERRUPTED
    except (ServerDied, FetchError) as error:
        print(f"evals.load: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

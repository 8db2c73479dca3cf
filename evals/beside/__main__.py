"""`python -m evals.beside`: kvserve and NVIDIA kvpress, side by side."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.beside.asking import Asking
from evals.beside.journal import SidesJournal
from evals.beside.markdown import markdown
from evals.beside.partner import ROOT, Gone, pool
from evals.beside.report import report, speeds
from evals.beside.speed import Speed
from evals.endpoint import Endpoint, Refused
from evals.items import ASKED
from evals.server import layers_of, serving
from measuring.command import at_least, attempted
from measuring.machine import about
from measuring.results import write
from measuring.server import ServerDied
from models.fetch import located
from models.wheels import FetchError
from server.cli.embedded import SERVED_NAME

PYTHON = ROOT / ".venv-kvpress" / "bin" / "python"
PARTS = ("quality", "speed")
HELP = "of quality, speed; what is left out is taken from --out, if that exists (default: both)"
LOOKED_INTO = 5  # items of which the tokens kept are compared, and that kvpress' pipeline answers as a whole too


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    made = argparse.ArgumentParser("python -m evals.beside", description=__doc__, allow_abbrev=False)
    made.add_argument(
        "--model", default=SERVED_NAME, metavar="MODEL", help="a folder, or a fetched model (default: %(default)s)"
    )
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=HELP)
    made.add_argument("--items", type=int, default=200, metavar="N", help="in each cell (default: %(default)s)")
    made.add_argument("--tasks", nargs="+", choices=ASKED, default=["niah", "vt"], metavar="TASK")
    made.add_argument("--protocols", nargs="+", choices=("after", "inside"), default=["after", "inside"], metavar="P")
    made.add_argument("--length", type=int, default=512, metavar="N", help="tokens of an item (default: %(default)s)")
    made.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.25, 0.125], metavar="SHARE")
    made.add_argument("--repeats", type=int, default=5, metavar="N", help="of the timings (default: %(default)s)")
    made.add_argument(
        "--python", type=Path, default=PYTHON, help="the interpreter that has kvpress (default: %(default)s)"
    )
    made.add_argument(
        "--workers", type=int, default=2, metavar="N", help="of kvpress, for quality (default: %(default)s)"
    )
    made.add_argument("--out", type=Path, default=Path("results/kvpress.json"), help="(default: %(default)s)")
    made.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    made.add_argument("--so-far", action="store_true", help="write what an unfinished run has; it can still go on")
    made.add_argument("--render", action="store_true", help="only write the tables anew from --out")
    args = made.parse_args(argv)
    if not args.render and not args.python.exists():
        made.error(f"--python {args.python}: no such interpreter; `make kvpress` sets one up")
    at_least(made, args, items=1, repeats=1, workers=1, length=256)
    if wrong := [budget for budget in args.budgets if not 0 < budget < 1]:
        made.error(f"--budgets {wrong[0]}; allowed: shares between 0 and 1")
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for an unfinished run to go on."""
    named = ("items", "tasks", "protocols", "length", "budgets")
    return {
        **{name: getattr(args, name) for name in named},
        "model": Path(args.model).name,
        "seed": 0,
        "looked_into": min(LOOKED_INTO, args.items),
    }


async def measure(args: argparse.Namespace, url: str, ledger: SidesJournal | None) -> dict[str, Any]:
    """The parts that were asked for, each with where and when it was measured."""
    began, found = about(), {}
    endpoint = Endpoint(url, "")
    endpoint.model = await endpoint.served()
    async with pool(args.python, str(located(args.model)), args.workers) as theirs:
        began["partner"] = await theirs.ask("about")
        if ledger is not None:
            await Asking(settings(args), endpoint, theirs, ledger).run()
            found["quality"] = {"about": began, **report(ledger, settings(args))}
        if "speed" in args.parts:
            timings = Speed(url, endpoint, theirs, await endpoint.policies())
            found["speed"] = {"about": about(), "rows": speeds(await timings.run(args.repeats))}
    await endpoint.close()
    return found


async def so_far(args: argparse.Namespace, ledger: SidesJournal) -> dict[str, Any]:
    """What is in the ledger, beside versions, commit and load of now, not those of when it was measured."""
    async with pool(args.python, str(located(args.model)), 1) as theirs:
        now = {**about(), "partner": await theirs.ask("about")}
    return {"quality": {"about": now, "unfinished": True, **report(ledger, settings(args))}}


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 measured, 1 a side failed, 2 wrong usage, 130 interrupted."""
    args = parsed(argv)
    path = args.out.with_suffix(".jsonl")
    if args.fresh:
        path.unlink(missing_ok=True)
    return attempted("evals.beside", lambda: _run(args, path), (ServerDied, Refused, Gone, FetchError), path)


def _run(args: argparse.Namespace, path: Path) -> None:
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if args.render:
        return _finish(found, args.out)
    ledger = SidesJournal(path, settings(args)) if "quality" in args.parts else None
    if args.so_far and ledger is not None:
        return _finish(found | asyncio.run(so_far(args, ledger)), args.out)
    with serving([args.model, "--kv-groups", str(layers_of(args.model)), "--dtype", "float32"]) as url:
        found |= asyncio.run(measure(args, url, ledger))
    _finish(found, args.out)
    if ledger is not None:
        path.unlink()


def _finish(found: dict[str, Any], out: Path) -> None:
    text = markdown(found)
    write(out, found, text)
    print(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

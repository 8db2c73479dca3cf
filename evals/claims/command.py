"""`python -m evals.claims`: test the claims of the papers, print a table, write JSON and Markdown."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from openai import OpenAIError

from evals.claims import elastic_cache, prefixkv, scissorhands, triattention
from evals.claims.answers import Answers
from evals.claims.ask import SERVERS, ServedModel
from evals.claims.asking import asks_of, fill, path_of, settings
from evals.claims.claim import Claim
from evals.claims.progress import ClaimsJournal
from evals.claims.record import Record, ordered, record
from evals.claims.table import markdown
from evals.journal import EvalJournal
from measuring.command import at_least, attempted
from measuring.machine import about
from measuring.results import write
from measuring.server import ServerDied

CLAIMS: tuple[Claim, ...] = (
    *scissorhands.CLAIMS,
    *elastic_cache.CLAIMS,
    *prefixkv.CLAIMS,
    *triattention.CLAIMS,
)
LOOKED = 0.3
"""Share of the items whose attention is looked at: a text says more of it than an answer."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m evals.claims",
        description=__doc__,
        epilog="An interrupted run goes on when the same command is given again. Claims: "
        + ", ".join(claim.name for claim in CLAIMS),
    )
    made.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="these claims, or those that begin so (e.g. scissorhands); default: all",
    )
    made.add_argument("--items", type=int, default=200, metavar="N", help="in each cell (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the questions (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/claims.json"), help="(default: %(default)s)")
    made.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    made.add_argument("--render", action="store_true", help="only write the table anew from --out")
    return made


def chosen(made: argparse.ArgumentParser, args: argparse.Namespace) -> list[Claim]:
    """The claims asked for, in order; exits with a message that names what is wrong."""
    at_least(made, args, items=2)
    for name in args.only or ():
        if not any(claim.name.startswith(name) for claim in CLAIMS):
            made.error(f"--only {name}: no such claim; there are {', '.join(claim.name for claim in CLAIMS)}")
    return [claim for claim in CLAIMS if not args.only or claim.name.startswith(tuple(args.only))]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 tested, 1 no server, 2 wrong usage, 130 interrupted."""
    made = parser()
    args = made.parse_args(argv)
    claims = chosen(made, args)
    if args.render:
        return _finish(json.loads(args.out.read_text(encoding="utf-8")), args.out)

    def run() -> None:
        _finish(measure(claims, args), args.out)
        for path in _unfinished(args.out):
            path.unlink(missing_ok=True)

    return attempted("evals.claims", run, (ServerDied, OpenAIError), _progress(args.out))


def measure(claims: Sequence[Claim], args: argparse.Namespace) -> Record:
    """Ask, look and judge; what `--out` holds of other claims stays."""
    if args.fresh:
        for path in _unfinished(args.out):
            path.unlink(missing_ok=True)
    with ExitStack() as stack:
        progress = stack.enter_context(ClaimsJournal(_progress(args.out)))
        books = {served.name: _asked(stack, claims, served, args) for served in SERVERS}
        records = [_judged(claim, books, progress, args.items) for claim in claims]
    earlier: Record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    others = [each for each in earlier.get("claims", []) if each["name"] not in {claim.name for claim in claims}]
    seconds = round(progress.seconds) + (earlier["seconds"] if others else 0)
    made = {"session": about(), "seconds": seconds, "parts": progress.parts}
    return {**made, "claims": ordered([*others, *records], CLAIMS)}


def _asked(stack: ExitStack, claims: Sequence[Claim], served: ServedModel, args: argparse.Namespace) -> Answers:
    """All that these claims ask a server, answered; the book stays open as long as the stack."""
    path = path_of(args.out, served)
    book = stack.enter_context(EvalJournal(path, settings(served, args.seed), about()))
    fill(book, served, asks_of(claims, served), args.items, args.seed)
    return Answers(book)


def _judged(claim: Claim, books: dict[str, Answers], progress: ClaimsJournal, items: int) -> Record:
    """A claim's record; one that looks for itself does so once."""
    if claim.look is None:
        return record(claim, books, items)
    print(f"evals.claims: {claim.name}", file=sys.stderr)
    looked = progress.looked(f"{claim.name} {items}", lambda: record(claim, books, max(2, round(LOOKED * items))))
    return {**looked, "items": items}


def _progress(out: Path) -> Path:
    return out.with_name(f"{out.stem}-progress.jsonl")


def _unfinished(out: Path) -> list[Path]:
    return [_progress(out), *(path_of(out, served) for served in SERVERS)]


def _finish(found: Record, out: Path) -> int:
    """Write the table beside the JSON, and print it."""
    text = markdown(found)
    write(out, found, text)
    print(text)
    return 0

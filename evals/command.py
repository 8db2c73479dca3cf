"""`kvserve eval`: quality of policies over an OpenAI endpoint; prints a table, writes JSON, Markdown and curves."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAIError

from bench.machine import about
from evals import curves, report
from evals.book import Book, OtherSettings
from evals.cells import FULL, LONG, ORACLE, RANDOM, SHARES, SHORT, TOP, Contestant, Section
from evals.endpoint import Endpoint
from evals.items import ASKED
from evals.protocols import PROTOCOLS, RELATIVE
from evals.server import BLOCK, PLUGINS, NoServer, serving
from models import MINI
from models.scene import FORMS

EXAMPLES = """examples:
  kvserve eval --short                                  the table of the repository, on the embedded model
  kvserve eval --policies snapkv h2o --budgets 0.25     two policies between full, random and oracle
  kvserve eval --tasks chain --protocol decode --budgets 64 128 --forced
  kvserve eval --policies '{"name": "snapkv", "window": 8}' snapkv --budgets 0.1 0.25
  kvserve eval --base-url http://gpu:8000 --lengths 2000 --out results/gpu.json
An interrupted run goes on when the same command is given again.
"""
FORMS_OF_TABLE = {"short": SHORT, "long": LONG}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "kvserve eval", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = made.add_argument_group("who is asked")
    where.add_argument("--base-url", metavar="URL", help="a running server (default: start one on a free port)")
    where.add_argument("--api-key", default="-", metavar="KEY", help="for --base-url")
    where.add_argument("--model", help="a folder to serve (default: the embedded one), or a name at --base-url")
    where.add_argument("--policies", nargs="+", default=["all"], metavar="NAME|JSON", help="(default: all installed)")
    what = made.add_argument_group("what is asked")
    table = what.add_mutually_exclusive_group()
    table.add_argument("--short", action="store_true", help="the repository's table, a quarter of an hour on 2 cores")
    table.add_argument("--long", action="store_true", help="all tasks, three lengths, teacher-forced too: many hours")
    what.add_argument(
        "--tasks", nargs="+", choices=ASKED, metavar="TASK", help=f"of {', '.join(ASKED)} (default: niah)"
    )
    what.add_argument("--forms", nargs="+", choices=FORMS, metavar="FORM", help="completion (default) or chat")
    what.add_argument("--lengths", nargs="+", type=int, metavar="N", help="tokens of an item (default: 512)")
    what.add_argument("--protocol", nargs="+", choices=list(PROTOCOLS), metavar="P", help=_protocols())
    what.add_argument(
        "--budgets", nargs="+", type=_budget, metavar="B", help="tokens, or shares of them (default: six)"
    )
    what.add_argument("--forced", action="store_true", help="also NLL, KL and agreement with the answer given")
    what.add_argument("--items", type=int, default=200, metavar="N", help="in each cell (default: %(default)s)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of the items (default: %(default)s)")
    how = made.add_argument_group("how")
    how.add_argument("--at-once", type=int, default=48, metavar="N", help="requests (default: %(default)s)")
    how.add_argument("--dtype", default="float32", help="of the server that is started (default: %(default)s)")
    how.add_argument("--out", type=Path, default=Path("results/quality.json"), help="(default: %(default)s)")
    how.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    how.add_argument("--render", action="store_true", help="only write table and curves anew from --out")
    return made


def _protocols() -> str:
    return "; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items()) + " (default: inside)"


def _budget(text: str) -> float:
    value = int(text) if text.isdigit() else float(text)
    if value <= 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"{text}; allowed: a whole number >= 1 or a fraction in (0, 1]")
    return value


@dataclass
class Chosen:
    """A checked command line."""

    args: argparse.Namespace
    sections: tuple[Section, ...]
    given: list[Contestant]  # empty: all that are installed

    def settings(self, model: str, contestants: Sequence[Contestant]) -> dict[str, Any]:
        """What must be the same for an unfinished run to go on."""
        return {
            "command": " ".join(["kvserve eval", *self.args.argv]),
            "model": model,
            "dtype": self.args.dtype if self.args.base_url is None else None,
            "block": BLOCK if self.args.base_url is None else None,
            "items": self.args.items,
            "seed": self.args.seed,
            "policies": [each.fields for each in contestants],
            "sections": [section.record() for section in self.sections],
        }


def chosen(argv: Sequence[str]) -> Chosen:
    """Parsed and checked; exits with a message that names the flag and what is allowed."""
    made = parser()
    args = made.parse_args(argv)
    args.argv = [word for word in argv if word != "--fresh"]
    for flag in ("items", "at_once"):
        if getattr(args, flag) < 1:
            made.error(f"--{flag.replace('_', '-')} is {getattr(args, flag)}; allowed: 1 or more")
    single = {flag: getattr(args, flag) for flag in ("tasks", "forms", "lengths", "protocol", "budgets")}
    try:
        given = [] if args.policies == ["all"] else [Contestant.of(text) for text in args.policies]
    except ValueError as error:
        made.error(f"--policies: {error}")
    for name, sections in FORMS_OF_TABLE.items():
        if getattr(args, name):
            if extra := [flag for flag, value in single.items() if value] + ["forced"] * args.forced:
                made.error(f"--{name} says what is asked; leave out --{', --'.join(extra)}")
            return Chosen(args, sections, given)
    section = Section(
        tuple(single["tasks"] or ("niah",)),
        tuple(single["lengths"] or (512,)),
        tuple(single["protocol"] or ("inside",)),
        tuple(single["budgets"] or SHARES),
        TOP * args.forced,
        tuple(single["forms"] or ("completion",)),
    )
    _check(made, section)
    return Chosen(args, (section,), given)


def _check(made: argparse.ArgumentParser, section: Section) -> None:
    shares = [budget for budget in section.budgets if isinstance(budget, float)]
    if shares and (absolute := [p for p in section.protocols if p not in RELATIVE]):
        made.error(f"--budgets {shares[0]}: protocol {absolute[0]} takes numbers of tokens")
    if small := [length for length in section.lengths if length < 256]:
        made.error(f"--lengths {small[0]}; allowed: 256 or more")


# -- running ------------------------------------------------------------------------------------------


@contextmanager
def asked(args: argparse.Namespace) -> Iterator[tuple[str, Path | None]]:
    """Base address of the server, and the folder that its oracle reads; None if it is not ours."""
    if args.base_url is not None:
        yield args.base_url.rstrip("/").removesuffix("/v1"), None
        return
    from transformers import AutoConfig

    model = args.model or str(MINI)
    layers = AutoConfig.from_pretrained(model).num_hidden_layers
    flags = [*([args.model] if args.model else []), "--kv-groups", str(layers), "--dtype", args.dtype]
    with tempfile.TemporaryDirectory() as folder:
        print("kvserve eval: starting a server", file=sys.stderr)
        with serving(flags, [PLUGINS], KVSERVE_EVALS_ORACLE=folder) as url:
            yield url, Path(folder)


async def measure(chosen: Chosen, url: str, folder: Path | None, path: Path) -> dict[str, Any]:
    """The whole run; its report."""
    from evals.oracle import Oracle
    from evals.runner import Runner

    args, started = chosen.args, time.monotonic()
    endpoint = Endpoint(url, "", args.api_key)
    endpoint.model = args.model if args.base_url and args.model else await endpoint.served()
    cards = await endpoint.policies()
    contestants = line_up(chosen.given, cards, folder is not None)
    settings = chosen.settings(endpoint.model, contestants)
    book = Book(path, settings, about())
    try:
        wanted = folder is not None and any(each.name == ORACLE for each in contestants)
        oracle = Oracle(args.model or str(MINI), folder) if wanted and folder else None
        runner = Runner(
            chosen.sections, contestants, cards, endpoint, book, args.items, args.seed, args.at_once, oracle
        )
        await runner.run()
        return report.report(book, settings, time.monotonic() - started)
    finally:
        book.close()
        await endpoint.close()


def line_up(given: Sequence[Contestant], cards: dict[str, Any], ours: bool) -> list[Contestant]:
    """Those who are measured: the brackets, and those named, or all that are installed."""
    named = list(given) or [Contestant({"name": name}) for name in cards if name not in (FULL, RANDOM, ORACLE)]
    brackets = [name for name in (FULL, RANDOM, ORACLE) if name in cards and (name != ORACLE or ours)]
    return [*(Contestant({"name": name}) for name in brackets), *(each for each in named if each.label not in brackets)]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 measured, 1 no server, 2 wrong usage, 130 interrupted."""
    made = chosen(argv)
    out: Path = made.args.out
    if made.args.render:
        return _finish(json.loads(out.read_text(encoding="utf-8")), out)
    path = out.with_suffix(".jsonl")
    if made.args.fresh:
        path.unlink(missing_ok=True)
    try:
        with ExitStack() as stack:
            url, folder = stack.enter_context(asked(made.args))
            found = asyncio.run(measure(made, url, folder, path))
    except KeyboardInterrupt:
        print(f"\nkvserve eval: interrupted; the same command goes on from {path}", file=sys.stderr)
        return 130
    except OtherSettings as error:
        print(f"kvserve eval: {error}", file=sys.stderr)
        return 2
    except (NoServer, OpenAIError) as error:
        print(f"kvserve eval: {error}", file=sys.stderr)
        return 1
    _finish(found, out)
    path.unlink()
    return 0


def _finish(found: dict[str, Any], out: Path) -> int:
    report.write(found, out)
    curves.draw(found, out)
    print(out.with_suffix(".md").read_text(encoding="utf-8"))
    return 0

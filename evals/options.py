"""The command line of `kvserve eval`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.cells import LONG, SHARES, SHORT, TOP, TOY, Contestant, Section
from evals.items import ASKED, ESSAY, form_of
from evals.protocols import PROTOCOLS, RELATIVE
from evals.server import BLOCK
from measuring.command import at_least
from models.fetchable import DEFAULT
from models.tasks.scene import FORMS

DESCRIPTION = "Quality of policies over an OpenAI endpoint; prints a table, writes JSON, Markdown and curves."
EXAMPLES = """examples:
  kvserve eval --short                                  a sample on the model that is served by default
  kvserve eval qwen2.5-coder-0.5b-instruct --lengths 1024 --budgets 0.25 --protocol inside after
  kvserve eval MODEL --policies snapkv h2o              two policies between full, random and oracle
  kvserve eval MODEL --policies '{"name": "snapkv", "window": 8}' snapkv --budgets 0.1 0.25
  kvserve eval MODEL --tasks essay --forced             how likely the true continuation of a text stays
  kvserve eval --base-url http://gpu:8000 --lengths 2000 --out results/gpu.json
  kvserve eval mini --toy                               what the mini model was made for; it ranks nothing
MODEL is a folder, or the name of a model that `kvserve models` lists. The texts of RULER's tasks are fetched once.
An interrupted run goes on when the same command is given again.
"""
TABLES = {"short": SHORT, "long": LONG, "toy": TOY}
DESCRIBING = ("tasks", "forms", "lengths", "protocol", "budgets", "forced")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "kvserve eval",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = made.add_argument_group("who is asked")
    where.add_argument("--base-url", metavar="URL", help="a running server (default: start one on a free port)")
    where.add_argument("--api-key", default="-", metavar="KEY", help="for --base-url")
    where.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"to serve (default: {DEFAULT}), or a name at --base-url"
    )
    where.add_argument("--model", dest="named", metavar="MODEL", help="the same")
    where.add_argument("--policies", nargs="+", default=["all"], metavar="NAME|JSON", help="(default: all installed)")
    what = made.add_argument_group("what is asked")
    table = what.add_mutually_exclusive_group()
    table.add_argument("--short", action="store_true", help="a sample of RULER's tasks and of essays")
    table.add_argument("--long", action="store_true", help="RULER's tasks at 1k to 3k tokens, teacher-forced too: days")
    table.add_argument("--toy", action="store_true", help="the tasks that the mini model was trained for")
    what.add_argument(
        "--tasks", nargs="+", choices=ASKED, metavar="TASK", help=f"of {', '.join(ASKED)} (default: niah_single)"
    )
    what.add_argument(
        "--forms", nargs="+", choices=FORMS, metavar="FORM", help="completion or chat (default: chat for RULER's)"
    )
    what.add_argument("--lengths", nargs="+", type=int, metavar="N", help="tokens of an item (default: 512)")
    what.add_argument("--protocol", nargs="+", choices=list(PROTOCOLS), metavar="P", help=_protocols())
    what.add_argument(
        "--budgets", nargs="+", type=_budget, metavar="B", help="tokens, or shares of them (default: six)"
    )
    what.add_argument("--forced", action="store_true", help="also NLL, KL and agreement with the answer given")
    what.add_argument(
        "--least",
        type=_share,
        default=0.9,
        metavar="S",
        help="score of the full cache under which the others are not asked (default: %(default)s)",
    )
    what.add_argument("--items", type=int, default=200, metavar="N", help="in each cell (default: %(default)s)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of the items (default: %(default)s)")
    how = made.add_argument_group("how")
    how.add_argument("--at-once", type=int, default=48, metavar="N", help="requests (default: %(default)s)")
    how.add_argument("--dtype", default="float32", help="of the server that is started (default: %(default)s)")
    how.add_argument("--out", type=Path, default=Path("results/quality.json"), help="(default: %(default)s)")
    how.add_argument("--no-oracle", action="store_true", help="without it, and its passes of stock transformers")
    how.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    how.add_argument(
        "--render",
        action="store_true",
        help="only write table and curves anew: from an unfinished run if there is one, else from --out",
    )
    return made


def _protocols() -> str:
    return "; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items()) + " (default: inside)"


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}; allowed: 0 to 1")
    return value


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
            "command": " ".join(["kvserve eval", *self.args.shown]),
            "model": model,
            "dtype": self.args.dtype if self.args.base_url is None else None,
            "block": BLOCK if self.args.base_url is None else None,
            "items": self.args.items,
            "least": self.args.least,
            "seed": self.args.seed,
            "policies": [each.fields for each in contestants],
            "sections": [section.record() for section in self.sections],
        }


def chosen(argv: Sequence[str]) -> Chosen:
    """Parsed and checked; exits with a message that names the flag and what is allowed."""
    made = parser()
    args = made.parse_args(argv)
    args.shown = shown(argv)
    if args.named is not None and args.model is not None:
        made.error(f"--model {args.named}: the model is named already, {args.model}")
    args.model = args.model or args.named or (None if args.base_url else DEFAULT)
    at_least(made, args, items=1, at_once=1)
    try:
        given = [] if args.policies == ["all"] else [Contestant.of(text) for text in args.policies]
    except ValueError as error:
        made.error(f"--policies: {error}")
    return Chosen(args, _sections(made, args), given)


def _sections(made: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Section, ...]:
    """A table of the repository's, or the one that the flags describe."""
    for name, sections in TABLES.items():
        if getattr(args, name):
            if extra := [flag for flag in DESCRIBING if getattr(args, flag)]:
                made.error(f"--{name} says what is asked; leave out --{', --'.join(extra)}")
            return sections
    tasks = tuple(args.tasks or ("niah_single",))
    forms = {form_of(task) for task in tasks}
    section = Section(
        tasks,
        tuple(args.lengths or (512,)),
        tuple(args.protocol or ("inside",)),
        tuple(args.budgets or SHARES),
        TOP * args.forced,
        tuple(args.forms or ("chat" if forms == {"chat"} else "completion",)),
        generated=ESSAY not in tasks,
    )
    _check(made, section)
    return (section,)


def shown(argv: Sequence[str]) -> list[str]:
    """The command line as the report shows it: what decides the result, and no secret."""
    words = iter(argv)
    kept = []
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag in ("--api-key", "--out"):
            _ = equals or next(words, "")
        elif word != "--fresh":
            kept.append(word)
    return kept


def _check(made: argparse.ArgumentParser, section: Section) -> None:
    if ESSAY in section.tasks and (len(section.tasks) > 1 or not section.forced or section.forms != ("completion",)):
        made.error(f"--tasks {ESSAY}: it asks nothing; give it alone, with --forced and without --forms")
    shares = [budget for budget in section.budgets if isinstance(budget, float)]
    if shares and (absolute := [p for p in section.protocols if p not in RELATIVE]):
        made.error(f"--budgets {shares[0]}: protocol {absolute[0]} takes numbers of tokens")
    if small := [length for length in section.lengths if length < 256]:
        made.error(f"--lengths {small[0]}; allowed: 256 or more")

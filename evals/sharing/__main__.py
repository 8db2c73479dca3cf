"""`python -m evals.sharing`: one document with many questions, and conversations, compressed once or every time.

Beside plain prefix caching (`full`) and the same policies without `share`.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import Any

from evals.server import BLOCK, serving
from evals.sharing import conversation, document
from evals.sharing.conversation import TurnFound
from evals.sharing.report import Sharing
from measuring.command import INTERRUPTED, at_least, listed, measured
from measuring.machine import about
from measuring.repetitions import Repetitions
from measuring.server import ServerDied
from models.fetch import located
from models.fetchable import DEFAULT
from models.wheels import FetchError

PARTS = ("document", "conversation")
STEP = 5
"""Turns that a row of the conversation's table stands for."""


@dataclass(frozen=True)
class SharingSettings:
    """Lengths in tokens; copies: of the document that the pool holds uncompressed."""

    model: str
    dtype: str
    parts: tuple[str, ...]
    policies: tuple[str, ...]
    budget: float
    shared_only: bool
    length: int
    questions: int
    copies: float
    conversations: int
    turns: int
    turn: int

    @property
    def turn_budget(self) -> int:
        """Tokens that a conversation is compressed to: of its whole length, the share that a document keeps."""
        return round(self.budget * self.turns * self.turn)

    @property
    def longest(self) -> int:
        """Tokens of one request, at most: lengths are guessed from words."""
        return max(self.length, self.turns * (self.turn + conversation.ROOM)) * 5 // 4 + 256

    def blocks(self, part: str) -> int:
        """Of the pool, one of which vLLM keeps for itself; a conversation has room enough."""
        tokens = self.copies * self.length if part == "document" else 2 * self.longest
        return ceil(max(tokens, self.longest) / BLOCK) + 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m evals.sharing", description=__doc__, allow_abbrev=False)
    made.add_argument("model", nargs="?", default=DEFAULT, help="a folder, or a fetched model (default: %(default)s)")
    made.add_argument("--parts", default=",".join(PARTS), help="(default: %(default)s)")
    made.add_argument("--policies", nargs="+", required=True, metavar="NAME", help="keydiff, say; full is added")
    made.add_argument("--budget", type=float, default=0.25, help="share of the tokens that stay (default: %(default)s)")
    made.add_argument(
        "--shared-only", action="store_true", help="of a document: other policies beside an earlier table"
    )
    made.add_argument("--length", type=int, default=8192, metavar="N", help="of the document (default: %(default)s)")
    made.add_argument("--questions", type=int, default=64, metavar="N", help="about it (default: %(default)s)")
    made.add_argument("--copies", type=float, default=1.5, metavar="N", help="the pool holds (default: %(default)s)")
    made.add_argument("--conversations", type=int, default=3, metavar="N", help="(default: %(default)s)")
    made.add_argument("--turns", type=int, default=20, metavar="N", help="of each (default: %(default)s)")
    made.add_argument("--turn", type=int, default=250, metavar="N", help="tokens of a turn (default: %(default)s)")
    made.add_argument("--dtype", default="bfloat16", help="of the server (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("results/sharing.json"), help="(default: %(default)s)")
    return made


def chosen(argv: Sequence[str] | None) -> tuple[SharingSettings, Path]:
    """Parsed and checked; exits with a message that names the flag and what is allowed."""
    made = parser()
    args = made.parse_args(argv)
    at_least(made, args, length=256, questions=2, copies=1, conversations=1, turns=2, turn=64)
    if not 0 < args.budget < 1:
        made.error(f"--budget is {args.budget}; allowed: between 0 and 1")
    parts = tuple(listed(made, "--parts", args.parts, PARTS))
    given = {name: value for name, value in vars(args).items() if name not in ("out", "policies", "parts")}
    return SharingSettings(**given, parts=parts, policies=tuple(args.policies)), args.out


async def ask_about_a_document(settings: SharingSettings, url: str, found: Repetitions) -> None:
    """Each way once; they share no prefix, since each has a salt of its own. The first policy also without `share`."""
    items = document.questions(settings.length, settings.questions)
    ways: list[tuple[str, dict[str, Any]]] = [("full, prefix cache", {"name": "full"})]
    for name in settings.policies:
        policy = {"name": name, "budget": settings.budget, "decode": False}
        itself = [(f"{name}, each itself", policy)] if name == settings.policies[0] else []
        ways += [*itself, (f"{name}, shared", {**policy, "share": True})]
    for way, policy in ways:
        if settings.shared_only and "share" not in policy:
            continue
        found.add("document", way, **await document.measured(url, items, policy))


async def converse(settings: SharingSettings, url: str, found: Repetitions) -> None:
    """A case for every STEP turns of each way, named by the last of them."""
    rows: dict[str, list[list[TurnFound]]] = {}
    for number in range(settings.conversations):
        said = conversation.turns(settings.turns, settings.turn, number)
        full = await conversation.had(url, said, {"name": "full"}, None, STEP, number)
        rows.setdefault("full", []).append(full)
        history = [turn.given.text for turn in full]
        for name in settings.policies:
            policy = {
                "name": name,
                "budget": settings.turn_budget,
                "decode": False,
                "at": "last_message",
                "share": True,
            }
            rows.setdefault(name, []).append(await conversation.had(url, said, policy, history, STEP, number))
            print(f"evals.sharing: conversation {number + 1}: {name}", file=sys.stderr, flush=True)
    for name, many in rows.items():
        for last in range(STEP, settings.turns + 1, STEP):
            found.add("conversation", f"{name}, turn {last}", **_compared(rows, many, last, settings.policies[0]))


def _compared(
    rows: dict[str, list[list[TurnFound]]], many: list[list[TurnFound]], last: int, compressed: str
) -> dict[str, float]:
    """What the turns up to `last` came to; what `full` holds, the server says of one that is compressed."""
    these = slice(last - STEP, last)
    ends = [had[last - 1].given for had in many]
    held = [end.bytes or other[last - 1].given.full_bytes for end, other in zip(ends, rows[compressed], strict=True)]
    pairs = [
        pair for had, full in zip(many, rows["full"], strict=True) for pair in zip(had[these], full[these], strict=True)
    ]
    return {
        "right": fmean(right for had in many for right in had[last - 1].rights),
        "agrees": fmean(turn.given.text == other.given.text for turn, other in pairs),
        "ttft_s": median(end.first for end in ends),
        "held_mb": median(held) / 1e6,
        "cached": median(end.cached for end in ends),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 1 no server or no model, 2 wrong usage, 130 interrupted."""
    settings, out = chosen(argv)
    found = Repetitions()
    report = Sharing(found, replace(settings, model=Path(settings.model).name), about(), out)
    work = {"document": ask_about_a_document, "conversation": converse}

    def measure() -> None:
        located(settings.model)
        for part in settings.parts:
            print(f"evals.sharing: {part}: starting a server", file=sys.stderr)
            flags = [settings.model, "--dtype", settings.dtype, "--max-model-len", str(settings.longest)]
            flags += ["--num-gpu-blocks-override", str(settings.blocks(part)), "--kv-groups", "1"]
            with serving([*flags, "--enable-prompt-tokens-details"]) as url:
                asyncio.run(work[part](settings, url, found))

    try:
        return 0 if measured(measure, report) else INTERRUPTED
    except (ServerDied, FetchError) as error:
        print(f"evals.sharing: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

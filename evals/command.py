"""`kvserve eval`: quality of policies over an OpenAI endpoint."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAIError

from evals import curves, markdown, report
from evals.cells import FULL, ORACLE, RANDOM, Contestant
from evals.endpoint import Endpoint
from evals.journal import EvalJournal
from evals.options import Chosen, chosen
from evals.protocols import newest
from evals.server import PLUGINS, layers_of, serving
from measuring.command import attempted
from measuring.journal import settings_of
from measuring.machine import about
from measuring.results import write
from measuring.server import ServerDied
from models.fetch import located
from models.wheels import FetchError


@contextmanager
def asked(args: argparse.Namespace) -> Iterator[tuple[str, Path | None]]:
    """Base address of the server, and the folder that its oracle reads; None if it is not ours."""
    if args.base_url is not None:
        yield args.base_url.rstrip("/").removesuffix("/v1"), None
        return
    flags = [args.model, "--kv-groups", str(layers_of(args.model)), "--dtype", args.dtype]
    with tempfile.TemporaryDirectory() as folder:
        print("kvserve eval: starting a server", file=sys.stderr)
        with serving(flags, [PLUGINS], KVSERVE_EVALS_ORACLE=folder) as url:
            yield url, None if args.no_oracle else Path(folder)


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
    book = EvalJournal(path, settings, about())
    try:
        wanted = folder is not None and any(each.name == ORACLE for each in contestants)
        oracle = Oracle(located(args.model), folder) if wanted and folder else None
        runner = Runner(
            chosen.sections,
            contestants,
            cards,
            endpoint,
            book,
            args.items,
            args.seed,
            args.at_once,
            oracle,
            least=args.least,
        )
        await runner.run()
        known = {name: card["parameters"]["properties"] for name, card in cards.items()}
        protects = {e.label: newest(e.fields, known[e.name]) for e in contestants if e.name in known}
        return report.report(book, settings, time.monotonic() - started, protects)
    finally:
        book.close()
        await endpoint.close()


def line_up(given: Sequence[Contestant], cards: dict[str, Any], ours: bool) -> list[Contestant]:
    """Those who are measured: the brackets, and those named, or all that are installed."""
    named = list(given) or [
        Contestant({"name": name})
        for name, card in cards.items()
        if name not in (FULL, RANDOM, ORACLE) and card.get("budgeted", True)
    ]
    brackets = [FULL, *(name for name in (RANDOM, ORACLE) if name in cards and (name != ORACLE or ours))]
    return [*(Contestant({"name": name}) for name in brackets), *(each for each in named if each.label not in brackets)]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 measured, 1 no server, 2 wrong usage, 130 interrupted."""
    made = chosen(argv)
    out: Path = made.args.out
    path = out.with_suffix(".jsonl")
    if made.args.render:
        return _finish(_so_far(path) if path.exists() else json.loads(out.read_text(encoding="utf-8")), out)
    if made.args.fresh:
        path.unlink(missing_ok=True)

    def run() -> None:
        with asked(made.args) as (url, folder):
            found = asyncio.run(measure(made, url, folder, path))
        _finish(found, out)
        path.unlink()

    return attempted("kvserve eval", run, (ServerDied, OpenAIError, FetchError), path)


def _so_far(path: Path) -> dict[str, Any]:
    """The report of a run that was interrupted: cells that are complete only."""
    settings = settings_of(path)
    with EvalJournal(path, settings, about()) as book:
        pass
    made = report.report(book, settings, 0)
    cells = [cell for cell in made["cells"] if cell["items"] == settings["items"]]
    if any(len(found) < settings["items"] for found in book.forced.values()):
        cells = [{name: value for name, value in cell.items() if name != "forced"} for cell in cells]
    return {**made, "unfinished": True, "sessions": book.sessions[:-1], "cells": cells}


def _finish(found: dict[str, Any], out: Path) -> int:
    """Write table and curves beside the JSON, and print the table."""
    text = markdown.markdown(found)
    write(out, found, text)
    curves.draw(found, out)
    print(text)
    return 0

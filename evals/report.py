"""What a run has found, cell by cell: all that is written, and all that table and curves need."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evals.cells import FULL, RANDOM, Cell
from evals.intervals import bootstrap, difference, estimate
from evals.journal import EvalJournal
from evals.ruler import wording_of

Record = dict[str, Any]


def records(book: EvalJournal) -> list[Record]:
    """One per cell that was measured."""
    cells = dict.fromkeys([*book.scores, *book.forced])
    return [_record(book, cell) for cell in cells if book.scores.get(cell) or book.forced.get(cell)]


def _record(book: EvalJournal, cell: Cell) -> Record:
    """A cell's `score` is missing if its items were teacher-forced only."""
    found, forced = book.scores.get(cell), book.forced.get(cell)
    made: Record = {**cell._asdict(), "items": len(found or forced or ())}
    if found:
        made |= {
            "score": estimate([found[n][0] for n in sorted(found)])._asdict(),
            "kept": fmean(value[1] for value in found.values()),
            "bytes": fmean(value[2] for value in found.values()),
            "against_random": _against(book, cell),
            **_by_wording(cell, {number: value[0] for number, value in found.items()}),
        }
    if forced:
        columns = zip(*(forced[n] for n in sorted(forced)), strict=True)
        made["forced"] = {
            name: bootstrap(values)._asdict() for name, values in zip(("nll", "kl", "agreement"), columns, strict=True)
        }
    return made


def _by_wording(cell: Cell, scores: Mapping[int, float]) -> Record:
    """The mean score of the items in each wording, if the task has several."""
    found: dict[str, list[float]] = {}
    for number, score in sorted(scores.items()):
        found.setdefault(wording_of(cell.task, number), []).append(score)
    return {"wordings": {name: fmean(values) for name, values in found.items()}} if "" not in found else {}


def _against(book: EvalJournal, cell: Cell) -> Record | None:
    """The paired difference to random at the same budget; None for the brackets and where random is missing."""
    other = book.scores.get(cell._replace(policy=RANDOM))
    if cell.policy in (FULL, RANDOM) or not other:
        return None
    both = sorted(book.scores[cell].keys() & other.keys())
    found = difference([book.scores[cell][n][0] for n in both], [other[n][0] for n in both])
    verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "same"
    return {**found._asdict(), "verdict": verdict}


def report(
    book: EvalJournal, settings: Record, seconds: float, newest: Mapping[str, int | None] | None = None
) -> Record:
    """All that is written, as JSON takes it. newest: how many of the newest tokens each policy protects."""
    cells = records(book)
    refused: dict[tuple[str, str, float | None], str] = {}
    for cell, why in book.refused.items():
        refused[(cell.policy, cell.protocol, cell.budget if "budget" in why else None)] = why
    return {
        "sessions": book.sessions,
        "settings": settings,
        "seconds": round(seconds),
        "refused": [
            {"policy": policy, "protocol": protocol, "budget": budget, "why": why}
            for (policy, protocol, budget), why in refused.items()
        ],
        "newest": dict(newest or {}),
        "left_out": left_out(cells, settings.get("least", 0.0)),
        "cells": [cell for cell in cells if not _fails(cell, settings.get("least", 0.0))],
    }


def left_out(cells: Sequence[Record], least: float) -> list[Record]:
    """Kinds of items that the full cache gets too few of: nothing is said of policies there."""
    named = ("task", "form", "length", "protocol", "items", "score")
    return [{name: cell[name] for name in named} for cell in cells if _fails(cell, least)]


def _fails(cell: Record, least: float) -> bool:
    return bool(cell["policy"] == FULL and "score" in cell and cell["score"]["mean"] < least)

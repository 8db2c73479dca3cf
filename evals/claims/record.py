"""What is written of a claim: all that the table needs, as JSON takes it."""

from collections.abc import Sequence
from typing import Any

from evals.cells import FULL, RANDOM, Cell
from evals.claims.answers import MEASURES, Answers, Missing, balance
from evals.claims.ask import Ask
from evals.claims.claim import UNTESTED, Books, Claim, Condition, Figures, Findings, verdict
from evals.intervals import Estimate

Record = dict[str, Any]
ABLE = 0.8
"""How right the full cache must be for a task to tell policies apart."""


def record(claim: Claim, books: Books, items: int) -> Record:
    """Judge a claim by what was asked; one that looks for itself does so now."""
    made = {"name": claim.name, "paper": claim.paper, "says": claim.says, "why": claim.why, "items": items}
    try:
        found = _findings(claim, books, items)
    except Missing as error:
        return {**made, "verdict": UNTESTED, "why": str(error), "conditions": [], "tables": [], "figures": []}
    tables = [table for ask in claim.asks for table in _tables(ask, books[ask.served.name])]
    unable = next(filter(None, map(_unable, tables)), None)
    return {
        **made,
        "verdict": UNTESTED if unable else verdict(found.conditions),
        "why": f"{unable}. {claim.why}" if unable else claim.why,
        "conditions": [_condition(each) for each in found.conditions],
        "tables": tables,
        "figures": [_figures(each) for each in found.figures],
    }


def _unable(table: Record) -> str | None:
    """Why nothing can be told of forgetting: what the full cache does not know, no policy can lose."""
    full = table["cells"][0]["mean"]
    if table["measure"] != "score" or full >= ABLE:
        return None
    right = f"{100 * full:.1f} % of {table['task']} right, less than {100 * ABLE:.0f} %"
    return f"At full cache {table['server']} gets only {right}"


def _findings(claim: Claim, books: Books, items: int) -> Findings:
    if claim.look is not None:
        return claim.look(items)
    return claim.judge(books) if claim.judge is not None else Findings([])


def _condition(condition: Condition) -> Record:
    return {**condition._asdict(), "found": condition.found._asdict(), "state": condition.state}


def _figures(figures: Figures) -> Record:
    rows = [[label, [value._asdict() for value in values]] for label, values in figures.rows]
    return {**figures._asdict(), "columns": list(figures.columns), "rows": rows}


def _tables(ask: Ask, answers: Answers) -> list[Record]:
    """One for each measure that was taken; a row for each policy, the controls first."""
    cells = ask.cells()
    return [
        {
            "server": ask.served.name,
            "task": ask.section.tasks[0],
            "length": ask.section.lengths[0],
            "protocol": ask.section.protocols[0],
            "budgets": list(ask.section.budgets),
            "measure": measure,
            "items": len(answers.values(cells[0], measure)),
            "cells": [_cell(cell, answers, measure) for cell in cells],
        }
        for measure in MEASURES
        if (measure == "nll") == bool(ask.section.forced)
    ]


def _cell(cell: Cell, answers: Answers, measure: str) -> Record:
    found = answers.mean(cell, measure)
    made = {"policy": cell.policy, "budget": cell.budget, **found._asdict(), "against_random": None}
    if cell.policy not in (FULL, RANDOM):
        made["against_random"] = _against(cell, answers, measure)
    return made


def _against(cell: Cell, answers: Answers, measure: str) -> str:
    """better, same or worse than random on the same items: fewer nats are better."""
    ours, theirs = answers.values(cell, measure), answers.values(cell._replace(policy=RANDOM), measure)
    gain: Estimate = balance([ours], [theirs]) if measure == "score" else balance([theirs], [ours])
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "same"


def ordered(records: Sequence[Record], claims: Sequence[Claim]) -> list[Record]:
    """In the order of the claims; what is no claim any more is left out."""
    by_name = {each["name"]: each for each in records}
    return [by_name[claim.name] for claim in claims if claim.name in by_name]

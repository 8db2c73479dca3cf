"""What `make eval` measured of one policy, as a table."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from evals.markdown import MARKS

RESULTS = Path(__file__).parents[1] / "results" / "quality.json"


class Kind(NamedTuple):
    """What one row is about."""

    task: str
    form: str
    length: int
    protocol: str


def quality(name: str) -> str:
    """Exact answers of a policy by task, protocol and budget; a sentence if there are none."""
    record = _results()
    rows: dict[Kind, dict[float, dict[str, Any]]] = {}
    for cell in record.get("cells", []):
        if cell["policy"] == name:
            rows.setdefault(Kind(*(cell[field] for field in Kind._fields)), {})[cell["budget"]] = cell
    if not rows:
        return "Quality was not measured yet; `make eval` does it."
    budgets = sorted({budget for cells in rows.values() for budget in cells}, key=lambda b: (b > 1, -b))
    lines = [["task, tokens, protocol", *(f"{b:g}" if b > 1 else f"{100 * b:g} %" for b in budgets)]]
    lines += [["---", *("---:" for _ in budgets)]]
    lines += [
        [f"{kind.task}, {kind.length}, `{kind.protocol}`", *(_cell(cells.get(b)) for b in budgets)]
        for kind, cells in rows.items()
    ]
    return f"{_setting(record)}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _setting(record: dict[str, Any]) -> str:
    settings = record["settings"]
    return (
        f"Quality: right answers in % (of `chain`: right steps), model {settings['model']}, {settings['items']} items "
        "a cell, by budget; `≈`: not told apart from `random` at the same budget, `▼`: worse than it. Intervals and "
        "the other policies: [results/quality.md](../../results/quality.md); what the protocols are: "
        "[evaluation](../evaluation.md)."
    )


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    verdict = (cell["against_random"] or {}).get("verdict")
    return f"{100 * cell['score']['mean']:.1f}{MARKS[verdict]}"


@cache
def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}

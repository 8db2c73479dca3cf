"""What `kvserve eval` measured of one policy on models that people run, as a table."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from evals.markdown import MARKS
from measuring.report import rows as markdown_rows

RESULTS = Path(__file__).parents[1] / "results"
FILES = ("quality.json", "quality-half.json", "quality-after.json", "quality-settings.json", "quality-smollm2.json")


class Kind(NamedTuple):
    """What one row is about."""

    model: str
    task: str
    form: str
    length: int
    protocol: str
    settings: str  # what is not a default of the policy's


def quality(name: str) -> str:
    """Right answers of a policy by model, task, protocol and budget; a sentence if there are none."""
    rows: dict[Kind, dict[float, dict[str, Any]]] = {}
    for record in _results():
        for cell in record["cells"]:
            policy, _, settings = cell["policy"].partition(" ")
            if policy == name and "score" in cell:
                about = {field: cell[field] for field in ("task", "form", "length", "protocol")}
                kind = Kind(model=record["settings"]["model"], settings=settings, **about)
                rows.setdefault(kind, {})[cell["budget"]] = cell
    if not rows:
        return "Quality was not measured on a real model yet; `kvserve eval MODEL` does it."
    budgets = sorted({budget for cells in rows.values() for budget in cells}, key=lambda b: (b > 1, -b))
    lines = [["model, task, tokens, protocol", *(f"{b:g}" if b > 1 else f"{100 * b:g} %" for b in budgets)]]
    lines += [["---", *("---:" for _ in budgets)]]
    lines += [[_label(kind), *(_cell(cells.get(b)) for b in budgets)] for kind, cells in rows.items()]
    usual = {kind: cells for kind, cells in rows.items() if not kind.settings}
    return f"{verdict(usual)}\n\n{_SETTING}\n\n{markdown_rows(lines)}"


def _label(kind: Kind) -> str:
    settings = f", with {kind.settings}" if kind.settings else ""
    return f"{kind.model}, {kind.task}, {kind.length}, `{kind.protocol}`{settings}"


_SETTING = (
    "Quality: right answers in %, default parameters unless said otherwise, by budget; `≈`: not told apart from "
    "`random` at the same budget, `▼`: worse than it. Intervals, numbers of items and the other policies: Qwen with "
    "the question in sight [at a quarter](../../results/quality.md) and [at a half](../../results/quality-half.md), "
    "[with it later](../../results/quality-after.md), and in [other settings](../../results/quality-settings.md); "
    "[SmolLM2](../../results/quality-smollm2.md); what the protocols are: [evaluation](../evaluation.md)."
)


def verdict(rows: dict[Kind, dict[float, dict[str, Any]]]) -> str:
    """Whether it beats `random` anywhere, said first."""
    told = [_against(cell) for cells in rows.values() for cell in cells.values()]
    known = [found for found in told if found is not None]
    if not known:
        return "A control: others are held against it."
    better = known.count("better")
    if not better:
        return f"**No better than `random` in any of the {len(known)} cells measured on real models.**"
    if better == len(known):
        return f"Better than `random` in all {len(known)} cells measured on real models."
    return f"Better than `random` in {better} of the {len(known)} cells measured on real models."


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{100 * cell['score']['mean']:.1f}{MARKS[_against(cell)]}"


def _against(cell: dict[str, Any]) -> str | None:
    return (cell["against_random"] or {}).get("verdict")


@cache
def _results() -> list[dict[str, Any]]:
    paths = (RESULTS / name for name in FILES)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]

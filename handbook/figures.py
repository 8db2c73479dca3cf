"""What `make bench-policies` measured of one policy, as a table."""

import json
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "policies.json"

COLUMNS = {
    "rounds": ("rounds", 1.0, 0),
    "first_round_ms": ("first round ms", 1.0, 1),
    "round_ms": ("round ms", 1.0, 1),
    "share": ("% of time", 100.0, 1),
    "of_full": ("tokens/s : full", 1.0, 2),
    "of_streaming": (": streaming", 1.0, 2),
    "freed": ("blocks freed", 1.0, 0),
}
"""Quantity -> heading, factor, digits."""


def measured(name: str) -> str:
    """The rows of a policy, and what gathering its evidence does to a prefill; a sentence if there are none."""
    record = _results()
    if why := record.get("refused", {}).get(f"e: {name}"):
        return f"Not measured: {why}"
    cases = record.get("parts", {}).get("e", {})
    rows = {case: values for case, values in cases.items() if case.startswith(f"{name}:")}
    if not rows:
        return "Not measured yet; `make bench-policies` does it."
    head = ["budget and prompt", *(heading for heading, _, _ in COLUMNS.values())]
    lines = [head, ["---", *("---:" for _ in COLUMNS)]]
    lines += [
        [case.partition(":")[2], *(_cell(values, quantity) for quantity in COLUMNS)] for case, values in rows.items()
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    prefills = [_prefill(case, values) for case, values in cases.items() if _is_prefill(case, name)]
    return "\n\n".join([_setting(record), table, *(["\n".join(prefills)] if prefills else [])])


def _is_prefill(case: str, name: str) -> bool:
    return "prefill of" in case and case.split(maxsplit=1)[0].rstrip(",") == name


def _setting(record: dict[str, Any]) -> str:
    machine, tokens, commit = record["machine"], record["sizes"]["policy_output"], record["commit"] or "unknown"
    unfinished = "" if record["complete"] else " The run was interrupted."
    return (
        f"Speed, not quality. Embedded model, one request at a time, {tokens} tokens after the prompt, medians; "
        f"{machine['cpu']}, {machine['threads']} thread(s); {record['date'][:10]}, commit {commit[:7]}. "
        f"All figures: [results/policies.md](../../results/policies.md).{unfinished}"
    )


def _cell(values: dict[str, Any], quantity: str) -> str:
    _, factor, digits = COLUMNS[quantity]
    return f"{factor * values[quantity]['median']:.{digits}f}" if quantity in values else ""


def _prefill(case: str, values: dict[str, Any]) -> str:
    name, _, every = case.partition(",")[0].partition(" every ")
    label = f"`{name}`" + (f" and `every: {every}`" if every else "")
    length, ratio = case.rpartition(" ")[2], values["prefill_ratio"]["median"]
    return f"- A prefill of {length} tokens with {label} takes {ratio:.2f} times that of `streaming`."


@cache
def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}

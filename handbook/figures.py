"""What `make bench-policies` measured of one policy, as tables."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from measuring.report import rows as markdown_rows

RESULTS = Path(__file__).parents[1] / "results"

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
    record = _results("policies")
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
    table = markdown_rows(lines)
    return "\n\n".join(
        filter(None, [_setting(record), table, _prefills(_results("gathering").get("parts", {}).get("f", {}), name)])
    )


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


def _prefills(cases: dict[str, Any], name: str) -> str:
    """What gathering its evidence does to a prefill, on two models; empty if it gathers none."""
    found: dict[str, dict[str, str]] = {}
    for case, values in cases.items():
        model, _, policy = case.partition(": ")
        if policy.partition(" ")[0] == name and "prefill_cpu_ratio" in values:  # the control has none
            found.setdefault(policy, {})[model] = f"{values['prefill_cpu_ratio']['median']:.2f}"
    if not found:
        return ""
    models = list(dict.fromkeys(case.partition(": ")[0] for case in cases))
    lines = [["CPU time of a prefill : with `streaming`", *models], ["---", *("---:" for _ in models)]]
    lines += [[f"`{policy}`", *(ratios.get(model, "") for model in models)] for policy, ratios in found.items()]
    return markdown_rows(lines)


@cache
def _results(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

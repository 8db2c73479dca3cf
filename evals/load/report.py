"""The table of accuracy and speed together."""

from typing import Any

from measuring import report

COLUMNS = {
    "right": ("right %", 100.0, 1),
    "kept": ("bytes held %", 100.0, 0),
    "tokens_per_s": ("tokens/s", 1.0, 1),
    "of_full": (": full", 1.0, 2),
    "right_per_min": ("right answers/min", 1.0, 1),
    "ttft_p50_s": ("TTFT p50 s", 1.0, 1),
    "ttft_p99_s": ("TTFT p99 s", 1.0, 1),
    "whole_p50_s": ("whole answer p50 s", 1.0, 1),
}
"""Quantity -> heading, factor, digits."""


class AccuracyAndSpeed(report.Report):
    columns = COLUMNS
    spread = ("tokens_per_s", "of_full", "right_per_min")
    sizes: Any

    def heading(self) -> str:
        sizes = self.sizes
        return (
            f"{super().heading()}\n\n{sizes.model} in {sizes.dtype}: {sizes.requests} requests at once, each one "
            f"needle in essays of about {sizes.length} tokens and {sizes.answer} tokens of answer, in a pool that "
            f"holds {sizes.fits} of them uncompressed; {sizes.turns} turns with other items. Server and client share "
            "the machine. `full` runs first and last in each turn, `: full` is relative to the mean of the two. "
            "Medians over turns (quartiles). **right answers/min** is the goodput of this load: what is wrong does not "
            "count."
        )

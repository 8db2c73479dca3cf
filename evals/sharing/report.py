"""The tables of shared prefixes."""

from typing import Any

from evals.sharing.conversation import PROBES
from measuring import report

COLUMNS = {
    "right": ("right %", 100.0, 1),
    "agrees": ("as `full` %", 100.0, 0),
    "pool": ("pool in use %, most", 100.0, 1),
    "pool_first": (": by the first question", 100.0, 1),
    "running": ("in flight, most", 1.0, 0),
    "first_s": ("first question s", 1.0, 1),
    "question_s": ("each other question s", 1.0, 2),
    "ttft_s": ("TTFT s", 1.0, 2),
    "held_mb": ("held MB", 1.0, 1),
    "cached": ("tokens from a cache", 1.0, 0),
}
"""Quantity -> heading, factor, digits."""


class Sharing(report.Report):
    columns = COLUMNS
    sizes: Any

    def heading(self) -> str:
        sizes = self.sizes
        return (
            f"{super().heading()}\n\n{sizes.model} in {sizes.dtype}, budget {sizes.budget}. **document**: "
            f"{sizes.questions} questions about one text of about {sizes.length} tokens, in a pool that holds "
            f"{sizes.copies} of it; the first is asked alone, the others at once. `shared`: what the first left, "
            "compressed, is used by the others. **conversation**: "
            f"{sizes.conversations} of {sizes.turns} turns of about {sizes.turn} tokens, compressed before the last "
            f"message to {sizes.turn_budget} tokens; all are told the answers of `full`. Right: of {PROBES} questions "
            "about facts of all turns so far, asked behind the turn that is named. As `full`: of the answers of this "
            "turn and the four before, those that are the same text. Medians over conversations."
        )

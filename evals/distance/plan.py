"""What is asked: lengths, distances, and the policies that are held against each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evals.protocols import EvalSizes
from kvserve.policy.types import Summaries

LENGTHS = (512, 1024, 2048)
DISTANCES = {512: (30, 120, 400), 1024: (30, 400, 900), 2048: (30, 900, 1900)}
FULL, KSA, DROPPED, STREAMING, RANDOM = "full", "ksa", "ksa, no summaries", "streaming", "random"
SINKS = 4


@dataclass(frozen=True)
class DistanceCell:
    """One policy at one length and distance."""

    policy: str
    length: int
    distance: int


@dataclass(frozen=True)
class DistanceLayout:
    """How the served model summarises."""

    about: Summaries

    @property
    def window(self) -> int:
        """Tokens of text in the window."""
        return self.about.chunk * self.about.window

    @property
    def span(self) -> int:
        """Tokens of text that are seen at most: the window and a token's own chunk."""
        return self.window + self.about.chunk

    def entries(self, tokens: int) -> int:
        """What `ksa` holds of so many tokens, mean over all layers."""
        gone = max(0, tokens // self.about.chunk - self.about.window)
        kinds = self.about.layers
        share = kinds.count("summary") / len(kinds)
        return round(tokens - share * gone * (self.about.chunk - 1))

    def inside(self, distance: int) -> bool:
        return distance < self.window


def cells(lengths: tuple[int, ...]) -> list[DistanceCell]:
    return [
        DistanceCell(policy, length, distance)
        for length in lengths
        for distance in DISTANCES[length]
        for policy in POLICIES
    ]


Policy = Callable[[DistanceLayout, EvalSizes, int], Any]
POLICIES: dict[str, Policy] = {
    FULL: lambda layout, sizes, number: FULL,
    KSA: lambda layout, sizes, number: KSA,
    DROPPED: lambda layout, sizes, number: {"name": KSA, "summaries": False},
    # The text of the window alone, in all layers; it acts before the question is read, as ksa does.
    STREAMING: lambda layout, sizes, number: {
        "name": "streaming", "budget": layout.span, "sinks": 0, "slack": 16, "at": sizes.context,
    },
    # The window and at random as many entries as ksa holds, in all layers.
    RANDOM: lambda layout, sizes, number: {
        "name": "random", "budget": max(layout.entries(sizes.context), layout.window + SINKS + 1), "sinks": SINKS,
        "recent": layout.window, "seed": number, "slack": 16, "at": sizes.context,
    },
}  # fmt: skip

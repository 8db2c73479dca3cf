"""The table: accuracy by distance, how much of the full cache's is recovered outside the window, and what was held."""

import argparse
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from evals.distance.plan import FULL, KSA, POLICIES, DistanceCell, DistanceLayout, cells
from evals.intervals import Estimate, estimate, wilson
from measuring.report import rows as markdown_rows


@dataclass
class DistanceAnswers:
    """Scores (0 or 1), shares of entries and of bytes held, by cell."""

    scores: dict[DistanceCell, list[float]] = field(default_factory=dict)
    kept: dict[DistanceCell, list[float]] = field(default_factory=dict)
    bytes: dict[DistanceCell, list[float]] = field(default_factory=dict)

    def add(self, cell: DistanceCell, score: float, kept: float, held: float) -> None:
        for where, value in ((self.scores, score), (self.kept, kept), (self.bytes, held)):
            where.setdefault(cell, []).append(value)

    def record(self, layout: DistanceLayout, args: argparse.Namespace) -> dict[str, Any]:
        return {
            "model": args.model.name,
            "summaries": layout.about._asdict(),
            "items": args.items,
            "dtype": args.dtype,
            "seed": args.seed,
            "cells": [
                {
                    **asdict(cell),
                    "inside": layout.inside(cell.distance),
                    "exact": estimate(scores)._asdict(),
                    "entries": fmean(self.kept[cell]),
                    "bytes": fmean(self.bytes[cell]),
                }
                for cell, scores in self.scores.items()
            ],
            "recovered": {str(n): found._asdict() for n in args.lengths if (found := self.recovered(layout, n))},
        }

    def outside(self, layout: DistanceLayout, policy: str, length: int) -> list[float]:
        found = [self.scores[c] for c in self.scores if (c.policy, c.length) == (policy, length)
                 and not layout.inside(c.distance)]  # fmt: skip
        return [score for scores in found for score in scores]

    def recovered(self, layout: DistanceLayout, length: int) -> Estimate | None:
        """Share of the full cache's right answers outside the window that `ksa` gives too, by its own interval."""
        ours, full = (self.outside(layout, policy, length) for policy in (KSA, FULL))
        if not ours or not sum(full):
            return None
        accuracy = sum(full) / len(full)
        return Estimate(*(bound / accuracy for bound in wilson(sum(ours), len(ours))))


def text(found: DistanceAnswers, layout: DistanceLayout, args: argparse.Namespace) -> str:
    about = layout.about
    parts = [
        "# Retrieval by distance with summary tokens",
        f"`python -m evals.distance`, model {args.model.name}, {args.items} items a cell, {args.dtype}, through the "
        "server. One of eight codes is asked for; distance: tokens from its digits to where they are to be said. "
        f"Chunks of {about.chunk} tokens, a window of {about.window} chunks ({layout.window} tokens); layers: "
        f"{', '.join(about.layers)}. Exact answers in %, Wilson's 95 % interval in brackets.",
        "`ksa, no summaries`: what has left the window is dropped in the summary layers, full layers keep it: what the "
        "summaries themselves bring is the difference to `ksa`. `streaming`: the last "
        f"{layout.span} tokens in all layers; `random`: the window and a random sample, as many entries as `ksa`, in "
        "all layers; both act before the question is read, having read all before with the full cache, which `ksa` "
        "has not.",
        *(_table(found, layout, length) for length in args.lengths),
        _summary(found, layout, args.lengths),
    ]
    return "\n\n".join(parts) + "\n"


def _table(found: DistanceAnswers, layout: DistanceLayout, length: int) -> str:
    rows = cells((length,))
    distances = list(dict.fromkeys(cell.distance for cell in rows))
    names = [f"{d} {'(inside)' if layout.inside(d) else ''}".strip() for d in distances]
    lines = [[f"{length} tokens: distance", *names, "entries %", "bytes %"], ["---", *("---:" for _ in (*names, 0, 0))]]
    for policy in POLICIES:
        own = [DistanceCell(policy, length, distance) for distance in distances]
        held = [100 * fmean([fmean(shares[cell]) for cell in own]) for shares in (found.kept, found.bytes)]
        lines.append([policy, *(_figure(found.scores[cell]) for cell in own), *(f"{share:.1f}" for share in held)])
    return markdown_rows(lines)


def _summary(found: DistanceAnswers, layout: DistanceLayout, lengths: list[int]) -> str:
    lines = [
        "| outside the window | " + " | ".join(POLICIES) + " | ksa : full |",
        "| --- |" + " ---: |" * (len(POLICIES) + 1),
    ]
    for length in lengths:
        recovered = found.recovered(layout, length)
        shown = (
            f"{100 * recovered.mean:.1f} ({100 * recovered.low:.1f}–{100 * recovered.high:.1f})" if recovered else ""
        )
        figures = [_figure(found.outside(layout, policy, length)) for policy in POLICIES]
        lines.append(f"| {length} tokens | " + " | ".join([*figures, shown]) + " |")
    return "\n".join(lines)


def _figure(scores: list[float]) -> str:
    made = estimate(scores)
    return f"{100 * made.mean:.1f} ({100 * made.low:.1f}–{100 * made.high:.1f})"

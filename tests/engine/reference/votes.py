"""Scissorhands, and what others made of it: policies that look at every query, one by one."""

from collections import defaultdict
from typing import Literal

import torch

from tests.engine.reference.engine import Keep, Round, Trace
from tests.engine.reference.rules import best, each, ends


def seen_by(trace: Trace, query: int, layer: int, head: int) -> dict[int, float]:
    """Position -> attention of one query on it, mean over the group. Nothing was dropped since that query."""
    held = [p for p in trace.positions[layer][head] if p <= query]
    mean = trace.rows[query][layer][list(trace.heads_of(layer, head))].mean(0)
    assert len(held) == len(mean)
    return dict(zip(held, mean.tolist(), strict=True))


def is_low(attention: dict[int, float]) -> dict[int, int]:
    """Position -> 1 if it got less than the average; a rounding error below it is average."""
    return {p: int(a < (1 / len(attention)) * (1 - 1e-5)) for p, a in attention.items()}


def scissorhands(budget: int, history: int = 400, recent: int = 10, drop: float = 0.5) -> Round:
    """The paper's algorithm step by step: a vote is cast when its query is processed, on the cache of then."""
    cast = 0  # queries whose votes have been counted

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        nonlocal cast
        cast = max(cast, logical - history) if fresh else cast
        for query in range(cast, logical):
            for layer, heads in enumerate(trace.positions):
                for head in range(len(heads)):
                    ballot = is_low(seen_by(trace, query, layer, head))
                    trace.low.setdefault((layer, head), []).append(ballot)
        cast = logical
        if physical <= budget:
            return None
        keep = budget if fresh else physical - max(round(drop * budget), physical - budget)
        keep = max(keep, recent + 1)

        def pick(layer: int, head: int, held: list[int]) -> list[int]:
            ballots = trace.low[layer, head][-history:]
            score = {p: -float(sum(b.get(p, 0) for b in ballots)) for p in held}
            return best(score, keep, set(held[-recent:]))

        return each(trace, pick)

    return act


def cold_compress(
    budget: int,
    history: int | None = None,
    recent: int = 10,
    sinks: int = 4,
    votes: Literal["bits", "probability"] = "probability",
    slack: int = 128,
) -> Round:
    """The slots with the lowest mean, over the last queries that saw them, of attention or of 1 - low, go.

    history: queries that count, None = all. One by one in the original; here in rounds at multiples of `slack`.
    """
    marks: dict[tuple[int, int], dict[int, list[float]]] = {}  # (layer, head) -> position -> one mark per query
    cast = 0

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        nonlocal cast
        for query in range(max(cast, logical - (history or logical)), logical):
            for layer, heads in enumerate(trace.positions):
                for head in range(len(heads)):
                    attention = seen_by(trace, query, layer, head)
                    low = is_low(attention) if votes == "bits" else {}
                    book = marks.setdefault((layer, head), defaultdict(list))
                    for p, a in attention.items():
                        book[p].append(1.0 - low[p] if low else a)
        cast = logical
        if physical <= budget or not (fresh or logical % slack == 0):
            return None

        def pick(layer: int, head: int, held: list[int]) -> list[int]:
            last = {p: marks[layer, head][p][-history:] if history else marks[layer, head][p] for p in held}
            return best({p: sum(m) / len(m) for p, m in last.items()}, budget, ends(held, sinks, recent))

        return each(trace, pick)

    return act


def official(
    budget: int, history: int = 100, recent: int = 10, percentile: float = 0.9, slack: int = 128
) -> Round:  # fmt: skip
    """The release: a slot is in use when a query gives it more than the row's percentile; idle ones go.

    It has no budget of its own. Here the slots that were in use last stay, and those out of use
    for `history` queries are equal. Rows of the prompt have its full length, with zeros for what comes later.
    """
    used: dict[tuple[int, int], dict[int, int]] = {}  # (layer, head) -> position -> last query that used it
    cast = 0

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        nonlocal cast
        for query in range(max(cast, logical - history), logical):
            for layer, heads in enumerate(trace.positions):
                for head in range(len(heads)):
                    attention = seen_by(trace, query, layer, head)
                    row = list(attention.values()) + [0.0] * (trace.prompt - 1 - query)
                    bar = float(torch.quantile(torch.tensor(row, dtype=torch.float64), percentile))
                    book = used.setdefault((layer, head), {})
                    book |= dict.fromkeys([p for p, a in attention.items() if a > bar], query)
        cast = logical
        if physical <= budget or not (fresh or logical % slack == 0):
            return None

        def pick(layer: int, head: int, held: list[int]) -> list[int]:
            last = {p: used[layer, head].get(p, -1) for p in held}
            score = {p: float(q if q >= logical - history else -1) for p, q in last.items()}
            return best(score, budget, set(held[-recent:]))

        return each(trace, pick)

    return act

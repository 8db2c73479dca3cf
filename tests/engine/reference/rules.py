"""What the policies of the reference share: when to act, and how to take the best."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from tests.engine.reference.engine import Keep, Round, Trace

Pick = Callable[[Trace, int, int, list[int]], list[int]]  # (trace, layer, KV head, held) -> kept


def best(score: dict[int, float], count: int, protected: set[int]) -> list[int]:
    """The `count` positions with the highest scores, protected ones first, newer ones on ties."""
    order = sorted(score, key=lambda p: (p in protected, score[p], p), reverse=True)
    return sorted(order[:count])


def each(trace: Trace, pick: Callable[[int, int, list[int]], list[int]]) -> Keep:
    return {
        (layer, head): pick(layer, head, held)
        for layer, per_head in enumerate(trace.positions)
        for head, held in enumerate(per_head)
    }


def periodic(budget: int, slack: int, pick: Pick) -> Round:
    """Act when the prompt is complete and at multiples of `slack`, if more than the budget is held."""

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        if physical <= budget or not (fresh or logical % slack == 0):
            return None
        return each(trace, lambda layer, head, held: pick(trace, layer, head, held))

    return act


def ends(held: list[int], sinks: int, recent: int) -> set[int]:
    """What is always kept."""
    return set(held[-recent:]) | {p for p in held if p < sinks}


def target(budget: int | float, logical: int) -> int:
    """Tokens to keep per layer: fractions of the tokens seen round up, in exact arithmetic."""
    return budget if isinstance(budget, int) else math.ceil(Fraction(str(budget)) * logical)


def pooled(votes: Sequence[float], kernel: int) -> list[float]:
    """Maximum over `kernel` neighbouring slots, fewer at the ends."""
    return [max(votes[max(0, i - kernel // 2) : i + kernel // 2 + 1]) for i in range(len(votes))]

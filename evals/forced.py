"""Teacher-forced measures: errors do not add up, since each token is judged after the right ones."""

from collections.abc import Sequence
from math import exp, log
from typing import NamedTuple

from evals.endpoint import Tops

LEAST = 1e-6  # share of the rest, which rounding may leave below zero


class Forced(NamedTuple):
    """One answer, means over its tokens."""

    nll: float  # nats
    kl: float  # nats, full cache to this one; a lower bound, since all but the top tokens count as one
    agreement: float  # share of tokens whose most likely one is that of the full cache


def forced(tops: Tops, full: Tops, answer: Sequence[int]) -> Forced:
    """Measures of an answer's tokens from what was found with a policy and with the full cache."""
    steps = list(zip(tops, full, answer, strict=True))
    count = len(steps)
    return Forced(
        -sum(ours[token] for ours, _, token in steps) / count,
        sum(divergence(theirs, ours) for ours, theirs, _ in steps) / count,
        sum(best(ours) == best(theirs) for ours, theirs, _ in steps) / count,
    )


def best(top: dict[int, float]) -> int:
    return max(top, key=lambda token: (top[token], -token))


def divergence(full: dict[int, float], ours: dict[int, float]) -> float:
    """KL(full || ours) over the tokens that both name, and all others as one."""
    both = full.keys() & ours.keys()
    found = sum(exp(full[token]) * (full[token] - ours[token]) for token in both)
    rest = [max(LEAST, 1 - sum(exp(top[token]) for token in both)) for top in (full, ours)]
    return max(0.0, found + rest[0] * log(rest[0] / rest[1]))

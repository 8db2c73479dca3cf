"""H2O, R-KV and Expected Attention: policies that sum up queries, or compare keys with each other."""

import torch
from torch import Tensor

from tests.engine.reference.engine import Round, Trace
from tests.engine.reference.rules import best, ends, periodic, pooled
from tests.engine.reference.trigonometry import turned


def h2o(budget: int, slack: int = 128, recent_share: float = 0.5) -> Round:
    """The newest share of the budget, the rest by the attention got from all queries of prompt and answer."""

    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        mass = trace.mass[layer][list(trace.heads_of(layer, head))].mean(dim=0)
        newest = held[len(held) - round(recent_share * budget) :]
        return best({p: float(mass[p]) for p in held}, budget, set(newest))

    return periodic(budget, slack, pick)


def rkv(
    budget: int, slack: int = 128, window: int = 8, kernel: int = 7, mix: float = 0.1, threshold: float = 0.5
) -> Round:
    """mix * attention of the last queries - (1 - mix) * likeness to other keys; the window is kept."""

    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        keys = trace.keys[layer][head].double()
        wanted = pooled(window_attention(trace, layer, head, keys, window), kernel)
        alike = redundancy(keys, threshold).tolist()
        older = held[: len(held) - window]
        score = {p: mix * wanted[i] - (1 - mix) * alike[i] for i, p in enumerate(older)}
        recent = set(held[-window:])
        return best({**score, **dict.fromkeys(recent, 0.0)}, budget, recent)

    return periodic(budget, slack, pick)


def window_attention(trace: Trace, layer: int, head: int, keys: Tensor, window: int) -> list[float]:
    """Slot before the window -> mean over the last queries of the softmax of the group's highest logits."""
    seen = trace.queries[layer]
    at = list(range(len(seen) - window, len(seen)))
    queries = turned(torch.stack([seen[q] for q in at]), at, trace.frequencies)[:, list(trace.heads_of(layer, head))]
    plain = torch.cat([queries.real, queries.imag], dim=-1)  # (window, G, D)
    logits = (plain @ keys[: len(keys) - window].T / keys.shape[1] ** 0.5).amax(dim=1)
    return torch.softmax(logits, dim=-1).mean(dim=0).tolist()


def redundancy(keys: Tensor, threshold: float) -> Tensor:
    """(n, D) keys -> (n,): softmax of the mean cosine of each key with the others.

    For each key its newest like key (cosine over the threshold) counts 0, so that the newest copy is not punished.
    """
    unit = keys / keys.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(0.0)
    for row in cosine:
        like = (row > threshold).nonzero().flatten()
        if len(like):
            row[int(like[-1])] = 0.0
    return torch.softmax(cosine.mean(dim=0), dim=0)


def expected_attention(
    budget: int,
    slack: int = 128,
    sinks: int = 4,
    recent: int = 32,
    horizon: int = 512,
    epsilon: float = 0.0,
    sinks_compete: bool = True,
) -> Round:
    """Attention expected from Gaussian queries of the next `horizon` positions, times the norm of the value.

    sinks_compete: the softmax runs over all slots; otherwise over those that are no sinks.
    """

    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        turn = average_rotation(len(trace.queries[layer]), horizon, trace.frequencies)
        queries = torch.stack(trace.queries[layer][4:]).double()  # the first 4 tokens are attention sinks
        first = 0 if sinks_compete else sum(p < sinks for p in held)
        keys = trace.keys[layer][head, first:].double()
        chances = [expectation(queries[:, q], turn, keys) for q in trace.heads_of(layer, head)]
        sizes = trace.values[layer][head, first:].double().norm(dim=1)
        scores = (sum(chances) / len(chances) + epsilon) * sizes
        score = dict(zip(held, [0.0] * first + scores.tolist(), strict=True))
        return best(score, budget, ends(held, sinks, recent))

    return periodic(budget, slack, pick)


def expectation(queries: Tensor, turn: Tensor, keys: Tensor) -> Tensor:
    """(n,) softmax of E[exp(q k / sqrt(D))] for queries (N, D), turned by (D, D), and keys (n, D)."""
    size = keys.shape[1]
    mean = queries.mean(dim=0)
    spread = torch.cov(queries.T, correction=0)
    mean, spread = turn @ mean, turn @ spread @ turn.T
    logits = keys @ mean / size**0.5 + ((keys @ spread) * keys).sum(dim=1) / (2 * size)
    return torch.softmax(logits, dim=0)


def average_rotation(start: int, horizon: int, frequencies: Tensor) -> Tensor:
    """(D, D): the mean of the rotations by `start` .. `start + horizon - 1`."""
    angles = torch.arange(start, start + horizon, dtype=torch.float64)[:, None] * frequencies
    cos, sin = torch.diag(angles.cos().mean(dim=0)), torch.diag(angles.sin().mean(dim=0))
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])

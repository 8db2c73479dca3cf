"""What policies rank by, once more in plain code over the reference's own keys, values and attention."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tests.zoo.reference import ReferencePass

HORIZON = 32
"""Positions to come that expected attention averages over here."""


class ScoreCase(NamedTuple):
    """One KV head of one layer at a compaction."""

    read: ReferencePass
    layer: int
    head: int
    heads: int  # KV heads of the layer
    held: Tensor  # (n,) positions before the compaction, oldest first
    logical: int

    def of_keys(self, contents: dict[int, Tensor]) -> Tensor:
        """(n, D) of the tokens held, float64; a cache may hold a copy of a KV head for each of its query heads."""
        cached = contents[self.layer]
        return cached[self.head * (len(cached) // self.heads), self.held].double()

    def of_group(self, rows: Tensor) -> Tensor:
        """(Hq, ...) -> (G, ...): the query heads of this KV head, float64."""
        group = len(rows) // self.heads
        return rows[self.head * group : (self.head + 1) * group].double()


def streaming(case: ScoreCase) -> Tensor:
    return case.held.double()


def knorm(case: ScoreCase) -> Tensor:
    return -case.of_keys(case.read.keys).norm(dim=-1)


def keydiff(case: ScoreCase) -> Tensor:
    keys = case.of_keys(case.read.keys)
    directions = keys / keys.norm(dim=-1, keepdim=True)
    anchor = directions.mean(dim=0)
    return -(directions @ anchor) / anchor.norm()


def tova(case: ScoreCase) -> Tensor:
    return case.read.weights[case.layer][:, case.logical - 1, case.held].double().mean(dim=0)


def h2o(case: ScoreCase) -> Tensor:
    rows = case.of_group(case.read.weights[case.layer])[:, : case.logical]
    return rows.sum(dim=1).mean(dim=0)[case.held]


def snapkv(case: ScoreCase, window: int = 32, kernel: int = 7) -> Tensor:
    rows = case.of_group(case.read.weights[case.layer])[:, case.logical - window : case.logical, case.held]
    votes = rows.mean(dim=(0, 1))[: len(case.held) - window]
    reach = kernel // 2
    pooled = [votes[max(0, i - reach) : i + reach + 1].max() for i in range(len(votes))]
    return torch.cat([torch.stack(pooled), torch.full((window,), torch.inf, dtype=torch.float64)])


def expected_attention(case: ScoreCase, sinks: int = 4) -> Tensor:
    """By its definition: the exponent of scale * q . k for a Gaussian q, averaged over the rotations to come."""
    queries = case.of_group(case.read.queries[case.layer])[:, sinks : case.logical]
    keys, norms = case.of_keys(case.read.keys), case.of_keys(case.read.values).norm(dim=-1)
    turn = case.read.turns[case.layer][case.logical : case.logical + HORIZON].double().mean(dim=0)
    body = case.held >= sinks
    shares = []
    for q in queries:
        mean, covariance = q.mean(dim=0) @ turn, turn.T @ torch.cov(q.T, correction=0) @ turn
        logits = keys @ mean * keys.shape[-1] ** -0.5 + ((keys @ covariance) * keys).sum(dim=-1) / keys.shape[-1] / 2
        shares.append(logits.masked_fill(~body, -torch.inf).softmax(dim=0))
    return torch.stack(shares).mean(dim=0) * norms


class Rule(NamedTuple):
    """How a policy ranks, and what it keeps anyway."""

    scores: Callable[[ScoreCase], Tensor]
    sinks: int
    recent: Callable[[int], int]  # of the number kept

    def disagreement(self, case: ScoreCase, kept: Tensor) -> float:
        """By how much the best of those dropped beats the worst of those kept, in spreads of all scores; <= 0: not."""
        scores = self.scores(case)
        stays = torch.isin(case.held, kept)
        safe = case.held < self.sinks
        safe[len(safe) - self.recent(len(kept)) :] = True
        assert stays[safe].all(), "a token was dropped that is always kept"
        free = scores[~safe]
        if not (stays & ~safe).any() or stays.all():
            return 0.0
        return float((scores[~stays].max() - scores[stays & ~safe].min()) / free[free.isfinite()].std())


RULES: dict[str, Rule] = {
    "streaming": Rule(streaming, 4, lambda keep: 1),
    "knorm": Rule(knorm, 4, lambda keep: 32),
    "keydiff": Rule(keydiff, 4, lambda keep: 32),
    "tova": Rule(tova, 0, lambda keep: 1),
    "h2o": Rule(h2o, 0, lambda keep: int(keep / 2)),
    "snapkv": Rule(snapkv, 0, lambda keep: 32),
    "pyramidkv": Rule(snapkv, 0, lambda keep: 32),
    "expected-attention": Rule(expected_attention, 4, lambda keep: 32),
}


def worst(name: str, read: ReferencePass, rounds: dict[int, Sequence[tuple[int, Tensor]]]) -> float:
    """The largest disagreement of a request's compactions with the rule of its policy."""
    found = [0.0]
    for layer, made in rounds.items():
        before: Tensor | None = None
        start = 0
        for logical, kept in made:
            heads = len(kept)
            fresh = torch.arange(start, logical).expand(heads, -1)
            held = fresh if before is None else torch.cat([before, fresh], dim=1)
            for head in range(heads):
                case = ScoreCase(read, layer, head, heads, held[head], logical)
                found.append(RULES[name].disagreement(case, kept[head]))
            before, start = kept, logical
    return max(found)

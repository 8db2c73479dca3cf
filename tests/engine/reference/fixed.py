"""Elastic Cache and PrefixKV: the prompt by its attention mass, the answer by deletions at a fixed slot."""

from typing import Literal

import torch
from torch import Tensor

from tests.engine.reference.engine import Keep, Merge, Round, Trace
from tests.engine.reference.rules import best, each, target

Buckets = dict[int, list[int]]  # kept position -> it and the positions that go into it


def importance(trace: Trace, layer: int) -> list[float]:
    """Attention that each token of the prompt got: mean over all query heads, sum over the prompt's queries."""
    return trace.mass[layer].mean(dim=0).tolist()


def fixed_slot(kept: int, distance: int) -> int:
    """Where single deletions happen after a prompt of which `kept` slots stayed."""
    slot = distance if distance > 0 else kept + distance
    return slot if slot >= 1 else kept // 2


def deleted(held: list[int], slot: int, count: int) -> list[int]:
    """What stays after `count` deletions at one slot, one after the other."""
    left = list(held)
    for _ in range(count):
        del left[slot]
    return left


def elected(scores: list[float], keep: int, sinks: int) -> list[int]:
    """Positions kept of a prompt: sinks, its last token and the highest scores."""
    last = len(scores) - 1
    return best(dict(enumerate(scores)), keep, {*range(sinks), last})


def buckets(kept: list[int], count: int, sinks: int) -> Buckets:
    """Each dropped position of a prompt of `count` goes to the nearest anchor, the lower of two; sinks and the last
    token are no anchors."""
    anchors = [p for p in kept if sinks <= p < count - 1]
    if not anchors:
        raise ValueError("nothing to merge into")
    groups = {p: [p] for p in kept}
    for p in sorted(set(range(count)) - set(kept)):
        groups[min(anchors, key=lambda a: (abs(a - p), a))].append(p)
    return groups


def blended(contents: Tensor, groups: Buckets) -> Tensor:
    """(n, D) -> (kept, D): the plain mean of each bucket."""
    return torch.stack([contents[members].double().mean(dim=0) for members in groups.values()]).to(contents.dtype)


def elastic(
    budget: int | float,
    slack: int = 128,
    sinks: int = 1,
    distance: int = -25,
    merge: Literal["kv", "values", "none"] = "kv",
) -> Round:
    slot = 0

    def prompt_done(trace: Trace, count: int) -> Keep | Merge:
        kept = [elected(importance(trace, layer), count, sinks) for layer in range(len(trace.positions))]
        keep = each(trace, lambda layer, _head, _held: kept[layer])
        if merge == "none":
            return keep
        contents = {}
        for layer, head in keep:
            groups = buckets(kept[layer], trace.prompt, sinks)
            keys = trace.keys[layer][head]
            keys = blended(keys, groups) if merge == "kv" else keys[kept[layer]]
            contents[layer, head] = keys, blended(trace.values[layer][head], groups)
        return Merge(keep, contents)

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | Merge | None:
        nonlocal slot
        count = target(budget, logical)
        if fresh:
            slot = fixed_slot(min(count, physical), distance)
        if physical <= count or not (fresh or logical % slack == 0):
            return None
        if fresh:
            return prompt_done(trace, count)
        return each(trace, lambda _layer, _head, held: deleted(held, slot, physical - count))

    return act


def prefixkv(budget: int | float, slack: int = 128, sinks: int = 1, distance: int = -25) -> Round:
    """Budgets of layers from this prompt ("online"); each layer then keeps its share of the target."""
    weights: list[float] = []
    slots: list[int] = []

    def prompt_done(trace: Trace, keep: int) -> Keep:
        scores = [importance(trace, layer) for layer in range(len(trace.positions))]
        counts = prefix_budgets(scores, keep * len(scores), sinks + 1)
        weights[:] = [count / keep for count in counts]
        slots[:] = [fixed_slot(count, distance) for count in counts]
        return each(trace, lambda layer, _head, _held: elected(scores[layer], counts[layer], sinks))

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        keep = min(target(budget, logical), logical)
        if fresh:
            choice = prompt_done(trace, keep)
            return choice if keep < logical else None
        if logical % slack:
            return None

        def pick(layer: int, _head: int, held: list[int]) -> list[int]:
            return deleted(held, slots[layer], max(0, len(held) - round(weights[layer] * keep)))

        held = sum(trace.held(layer) for layer in range(len(weights))) / len(weights)
        return each(trace, pick) if held > keep else None

    return act


def prefix_budgets(scores: list[list[float]], total: int, least: int) -> list[int]:
    """Tokens of each layer, `total` in all, so that all layers retain about the same share of their mass.

    The largest threshold p found by bisection whose prefixes fit; what is left goes one by one to the layer whose
    next token has the largest share (to the first on ties), what is too much comes from where the loss is smallest.
    """
    shares = [[s / sum(layer) for s in sorted(layer, reverse=True)] for layer in scores]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        fits = sum(prefix_length(layer, middle, least) for layer in shares) <= total
        low, high = (middle, high) if fits else (low, middle)
    counts = [prefix_length(layer, low, least) for layer in shares]
    while sum(counts) < total:
        open_ = [i for i, layer in enumerate(shares) if counts[i] < len(layer)]
        counts[max(open_, key=lambda i: shares[i][counts[i]])] += 1
    while sum(counts) > total:
        open_ = [i for i in range(len(shares)) if counts[i] > least]
        counts[min(open_, key=lambda i: shares[i][counts[i] - 1])] -= 1
    return counts


def prefix_length(shares: list[float], threshold: float, least: int) -> int:
    """The smallest number of tokens, at least `least`, whose shares reach the threshold."""
    got = 0.0
    for count, share in enumerate(shares, start=1):
        got += share
        if got >= threshold:
            return max(count, least)
    return len(shares)

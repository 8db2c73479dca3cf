"""Policies that look at keys or at the last queries only, once more in plain code."""

from tests.engine.reference.engine import Keep, Round, Trace
from tests.engine.reference.rules import best, each, ends, periodic, pooled


def streaming(budget: int, slack: int = 128, sinks: int = 4) -> Round:
    return periodic(budget, slack, lambda _t, _l, _h, held: held[:sinks] + held[len(held) - (budget - sinks) :])


def knorm(budget: int, slack: int = 128, sinks: int = 4, recent: int = 32) -> Round:
    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        norms = {p: -float(trace.keys[layer][head, i].norm()) for i, p in enumerate(held)}
        return best(norms, budget, ends(held, sinks, recent))

    return periodic(budget, slack, pick)


def keydiff(budget: int, slack: int = 128, sinks: int = 4, recent: int = 32) -> Round:
    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        keys = [trace.keys[layer][head, i].double() for i in range(len(held))]
        anchor = sum(k / k.norm() for k in keys) / len(keys)
        score = {p: -float(k @ anchor / (k.norm() * anchor.norm())) for p, k in zip(held, keys, strict=True)}
        return best(score, budget, ends(held, sinks, recent))

    return periodic(budget, slack, pick)


def tova(budget: int, slack: int = 128) -> Round:
    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        row = trace.rows[-1][layer]  # (Hq, slots): all heads of a layer hold the same tokens in TOVA only
        score = {p: sum(float(row[q, i]) for q in range(len(row))) / len(row) for i, p in enumerate(held)}
        return best(score, budget, {held[-1]})

    return periodic(budget, slack, pick)


def snapkv(budget: int, window: int = 32, kernel: int = 7) -> Round:
    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        if physical <= budget or not fresh:
            return None

        def pick(layer: int, head: int, held: list[int]) -> list[int]:
            group = trace.heads_of(layer, head)
            votes = []
            for p in held[: len(held) - window]:
                mean = 0.0
                for q in range(logical - window, logical):
                    mean += sum(float(trace.rows[q][layer][g, p]) for g in group) / len(group)
                votes.append(mean / window)
            score = dict(zip(held, pooled(votes, kernel), strict=False))  # the window has no votes
            recent = set(held[-window:])
            return best({**score, **dict.fromkeys(recent, 0.0)}, budget, recent)

        return each(trace, pick)

    return act

"""An independent engine: transformers in eager attention, float32, one request, a cache pruned by plain code.

Nothing of kvserve is imported. Scores are Python loops over what transformers itself returns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, DynamicCache

Keep = dict[tuple[int, int], list[int]]  # (layer, KV head) -> kept logical positions, ascending


@dataclass
class Trace:
    """What the reference knows at each step."""

    prompt: int
    positions: list[list[list[int]]]  # layer, KV head -> logical positions of the slots
    rows: list[list[torch.Tensor]] = field(default_factory=list)  # query -> per layer (Hq, slots at that time)
    keys: list[torch.Tensor] = field(default_factory=list)  # layer -> (H, slots, D)
    low: dict[tuple[int, int], list[dict[int, int]]] = field(default_factory=dict)  # per query: position -> vote


Round = Callable[[Trace, int, int, bool], Keep | None]  # (trace, logical, physical, prefilled just now)


def load(path: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def run(model, prompt: list[int], length: int, act: Round) -> tuple[list[int], list[float], list[tuple[int, Keep]]]:
    """Greedy decoding with a cache pruned by `act`; tokens, their log-probabilities, rounds (logical, keep)."""
    cfg = model.config
    layers, heads = cfg.num_hidden_layers, cfg.num_key_value_heads
    cache = DynamicCache(config=cfg)
    ids = torch.tensor([prompt])
    out = model(ids, past_key_values=cache, output_attentions=True, use_cache=True)
    trace = Trace(len(prompt), [[list(range(len(prompt))) for _ in range(heads)] for _ in range(layers)])
    for q in range(len(prompt)):
        trace.rows.append([a[0, :, q, : q + 1] for a in out.attentions])
    tokens, logps, rounds = [], [], []
    logical, fresh = len(prompt), True
    while True:
        logp = torch.log_softmax(out.logits[0, -1].float(), -1)
        token = int(logp.argmax())
        tokens.append(token)
        logps.append(float(logp[token]))
        if len(tokens) == length:
            return tokens, logps, rounds
        trace.keys = [layer.keys[0] for layer in cache.layers]
        keep = act(trace, logical, len(trace.positions[0][0]), fresh)
        fresh = False
        if keep is not None:
            rounds.append((logical, keep))
            _prune(cache, trace, keep)
        out = model(
            torch.tensor([[token]]),
            past_key_values=cache,
            position_ids=torch.tensor([[logical]]),
            output_attentions=True,
            use_cache=True,
        )
        for layer in range(layers):
            for head in range(heads):
                trace.positions[layer][head].append(logical)
        trace.rows.append([a[0, :, 0] for a in out.attentions])
        logical += 1


def _prune(cache: DynamicCache, trace: Trace, keep: Keep) -> None:
    for layer, content in enumerate(cache.layers):
        keys, values = [], []
        for head, held in enumerate(trace.positions[layer]):
            slots = [held.index(p) for p in keep[layer, head]]
            keys.append(content.keys[0, head, slots])
            values.append(content.values[0, head, slots])
            trace.positions[layer][head] = list(keep[layer, head])
        content.keys, content.values = torch.stack(keys)[None], torch.stack(values)[None]


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


# -- the policies, once more ---------------------------------------------------------------------------


Pick = Callable[[Trace, int, int, list[int]], list[int]]  # (trace, layer, KV head, held) -> kept


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


def streaming(budget: int, slack: int = 128, sinks: int = 4) -> Round:
    return periodic(budget, slack, lambda _t, _l, _h, held: held[:sinks] + held[len(held) - (budget - sinks) :])


def knorm(budget: int, slack: int = 128, sinks: int = 4, recent: int = 32) -> Round:
    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        norms = {p: -float(trace.keys[layer][head, i].norm()) for i, p in enumerate(held)}
        return best(norms, budget, ends(held, sinks, recent))

    return periodic(budget, slack, pick)


def snapkv(budget: int, window: int = 32, kernel: int = 7) -> Round:
    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        if physical <= budget or not fresh:
            return None

        def pick(layer: int, head: int, held: list[int]) -> list[int]:
            votes = []
            for p in held[: len(held) - window]:
                mean = 0.0
                for q in range(logical - window, logical):
                    rows = trace.rows[q][layer]
                    group = rows.shape[0] // len(trace.positions[layer])
                    mean += sum(float(rows[head * group + g, p]) for g in range(group)) / group
                votes.append(mean / window)
            pooled = {
                p: max(votes[max(0, i - kernel // 2) : i + kernel // 2 + 1])
                for i, p in enumerate(held[: len(held) - window])
            }
            recent = set(held[-window:])
            return best({**pooled, **dict.fromkeys(recent, 0.0)}, budget, recent)

        return each(trace, pick)

    return act


def scissorhands(budget: int, history: int = 400, recent: int = 10, drop: float = 0.5) -> Round:
    """The paper's algorithm step by step: a vote is cast when its query is processed, on the cache of then."""
    cast = 0  # queries whose votes have been counted

    def vote(trace: Trace, query: int) -> None:
        for layer, rows in enumerate(trace.rows[query]):
            heads = len(trace.positions[layer])
            group = rows.shape[0] // heads
            for head in range(heads):
                held = [p for p in trace.positions[layer][head] if p <= query]
                mean = rows[head * group : (head + 1) * group].mean(0)
                assert len(held) == len(mean)
                low = {p: int(float(mean[i]) < (1 / len(held)) * (1 - 1e-5)) for i, p in enumerate(held)}
                trace.low.setdefault((layer, head), []).append(low)

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        nonlocal cast
        cast = max(cast, logical - history) if fresh else cast
        for query in range(cast, logical):
            vote(trace, query)
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

"""Greedy decoding by transformers in eager attention, float32, one request, with a cache that plain code prunes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

Keep = dict[tuple[int, int], list[int]]  # (layer, KV head) -> kept logical positions, ascending
Contents = dict[tuple[int, int], tuple[Tensor, Tensor]]  # (layer, KV head) -> keys, values of the kept, (kept, D)


class Merge(NamedTuple):
    """What stays, with new contents for the heads named in `contents`."""

    keep: Keep
    contents: Contents


@dataclass
class Trace:
    """What the reference knows at each step. Layers may hold different numbers of slots; heads of a layer do not."""

    prompt: int
    positions: list[list[list[int]]]  # layer, KV head -> logical positions of the slots
    queries: list[list[Tensor]]  # layer -> pre-RoPE query (Hq, D) of every token so far
    frequencies: Tensor  # (F,) float64, radians per token
    rows: list[list[Tensor]] = field(default_factory=list)  # query -> per layer (Hq, slots at that time)
    mass: list[Tensor] = field(default_factory=list)  # layer -> (Hq, positions) float64: sums of the rows
    keys: list[Tensor] = field(default_factory=list)  # layer -> (H, slots, D), post-RoPE
    values: list[Tensor] = field(default_factory=list)
    low: dict[tuple[int, int], list[dict[int, int]]] = field(default_factory=dict)  # per query: position -> vote

    def heads_of(self, layer: int, head: int) -> range:
        """Query heads of a KV head."""
        group = self.queries[layer][0].shape[0] // len(self.positions[layer])
        return range(head * group, (head + 1) * group)

    def held(self, layer: int) -> int:
        """Slots of a layer."""
        return len(self.positions[layer][0])


Round = Callable[
    [Trace, int, int, bool], "Keep | Merge | None"
]  # (trace, logical, physical of layer 0, prompt just done)


def load(path: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@contextmanager
def recorded_queries(model) -> Iterator[list[list[Tensor]]]:
    """Layer -> what enters the rotation, (Hq, D) for each token, filled while the model runs."""
    found: list[list[Tensor]] = [[] for _ in model.model.layers]
    hooks = [
        layer.self_attn.q_norm.register_forward_hook(lambda _m, _i, out, seen=seen: seen.extend(out[0].unbind(0)))
        for layer, seen in zip(model.model.layers, found, strict=True)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def run(
    model, prompt: list[int], length: int, act: Round, forced: Sequence[int] = ()
) -> tuple[list[int], list[float], list[tuple[int, Keep]]]:  # fmt: skip
    """Greedy decoding with a cache pruned by `act`; tokens, their log-probabilities, rounds (logical, keep).

    forced: what the first tokens are, whatever the model would say.
    """
    tokens, logps, rounds, _ = traced(model, prompt, length, act, forced)
    return tokens, logps, rounds


@torch.no_grad()
def traced(model, prompt: list[int], length: int, act: Round, forced: Sequence[int] = ()):
    """`run`, and the trace as it is at the end. A round lists the layers that lost something."""
    cache = DynamicCache(config=model.config)
    tokens: list[int] = []
    logps: list[float] = []
    rounds: list[tuple[int, Keep]] = []
    with recorded_queries(model) as queries:
        out = model(torch.tensor([prompt]), past_key_values=cache, output_attentions=True, use_cache=True)
        trace = _first(model, prompt, out.attentions, queries)
        logical = len(prompt)
        while True:
            logp = torch.log_softmax(out.logits[0, -1].float(), -1)
            tokens.append(forced[len(tokens)] if len(tokens) < len(forced) else int(logp.argmax()))
            logps.append(float(logp[tokens[-1]]))
            if len(tokens) == length:
                return tokens, logps, rounds, trace
            trace.keys = [layer.keys[0] for layer in cache.layers]
            trace.values = [layer.values[0] for layer in cache.layers]
            choice = act(trace, logical, trace.held(0), len(tokens) == 1)
            if choice is not None and (changed := _prune(cache, trace, choice)):
                rounds.append((logical, changed))
            out = _step(model, cache, tokens[-1], logical)
            _count(trace, logical, out.attentions)
            logical += 1


def _first(model, prompt: list[int], attentions, queries: list[list[Tensor]]) -> Trace:
    n, heads = len(prompt), model.config.num_key_value_heads
    trace = Trace(
        prompt=n,
        positions=[[list(range(n)) for _ in range(heads)] for _ in attentions],
        queries=queries,
        frequencies=model.model.rotary_emb.inv_freq.double(),
        rows=[[a[0, :, q, : q + 1] for a in attentions] for q in range(n)],
        mass=[a[0].double().sum(dim=1) for a in attentions],
    )
    assert model.model.rotary_emb.attention_scaling == 1
    return trace


def _step(model, cache: DynamicCache, token: int, position: int):
    """One token. It sees every slot, so no layer needs a mask, however many slots each of them has."""
    return model(
        torch.tensor([[token]]),
        attention_mask=dict.fromkeys(model.config.layer_types),
        past_key_values=cache,
        position_ids=torch.tensor([[position]]),
        output_attentions=True,
        use_cache=True,
    )


def _count(trace: Trace, position: int, attentions) -> None:
    """The token at `position` has a slot now, and its query has looked at all slots."""
    trace.rows.append([a[0, :, 0] for a in attentions])
    for layer, row in enumerate(trace.rows[-1]):
        mass = torch.cat([trace.mass[layer], torch.zeros(len(row), 1, dtype=torch.float64)], dim=1)
        for head, held in enumerate(trace.positions[layer]):
            held.append(position)
            for q in trace.heads_of(layer, head):
                mass[q, held] += row[q].double()
        trace.mass[layer] = mass


def _prune(cache: DynamicCache, trace: Trace, choice: Keep | Merge) -> Keep:
    """Apply a choice; what it keeps in the layers that lose something."""
    keep, contents = choice if isinstance(choice, Merge) else (choice, {})
    changed = {place: kept for place, kept in keep.items() if kept != trace.positions[place[0]][place[1]]}
    for layer in sorted({layer for layer, _ in changed}):
        keys, values = [], []
        for head, held in enumerate(trace.positions[layer]):
            slots = [held.index(p) for p in keep[layer, head]]
            old = trace.keys[layer][head, slots], trace.values[layer][head, slots]
            new = contents.get((layer, head), old)
            keys.append(new[0])
            values.append(new[1])
            trace.positions[layer][head] = list(keep[layer, head])
        cache.layers[layer].keys, cache.layers[layer].values = torch.stack(keys)[None], torch.stack(values)[None]
    return changed

"""Rotary bands as complex numbers, and TriAttention on them, in float64 and on keys that are rotated back."""

from typing import Literal

import torch
from torch import Tensor

from tests.engine.reference.engine import Keep, Round, Trace, recorded_queries
from tests.engine.reference.rules import best

OFFSETS = tuple(2**i for i in range(17))
Statistics = list[tuple[Tensor, Tensor]]  # layer -> E[q_f] (Hq, F) complex128, E|q_f| (Hq, F) float64


def bands(x: Tensor) -> Tensor:
    """(..., D) -> (..., F) complex128: channels f and f + F are the two parts of band f."""
    real, imag = x.double().chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imag.contiguous())


def turned(x: Tensor, positions: list[int], frequencies: Tensor) -> Tensor:
    """(n, ..., D) vectors turned to their positions: (n, ..., F) complex128."""
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * frequencies
    return bands(x) * torch.exp(1j * angle).view(len(positions), *(1,) * (x.dim() - 2), -1)


@torch.no_grad()
def query_statistics(model, tokens: list[int]) -> Statistics:
    """What a calibration file holds, from one pass over a text."""
    with recorded_queries(model) as queries:
        model(torch.tensor([tokens]))
    found = [bands(torch.stack(seen)) for seen in queries]
    return [(q.mean(dim=0), q.abs().mean(dim=0)) for q in found]


def trig_scores(
    mean: Tensor, moduli: Tensor, keys: Tensor, positions: list[int], now: int, frequencies: Tensor, offsets=OFFSETS
) -> Tensor:
    """(n,) scores of pre-RoPE keys (n, F) for a query head with E[q] `mean` and E|q| `moduli`, both (F,)."""
    distance = now - torch.tensor(positions, dtype=torch.float64)[:, None]
    phase = torch.angle(mean * keys.conj())
    strength = mean.abs() * keys.abs()
    waves = [(strength * torch.cos(frequencies * (distance + ahead) + phase)).sum(dim=1) for ahead in offsets]
    norms = ((moduli - mean.abs()) * keys.abs()).sum(dim=1)
    return sum(waves) / len(waves) + norms


def triattention(
    budget: int,
    slack: int,
    mode: Literal["per_head", "per_layer_per_head", "union"],
    stats: Statistics,
    protect_prompt: bool = True,
    recent: int = 0,
) -> Round:
    """A protected prompt stays on top of the budget; otherwise it is a text like any other."""

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        keep = budget + (trace.prompt if protect_prompt else 0)
        if physical <= keep or not (fresh or logical % slack == 0):
            return None
        scored = {
            (layer, q): _normal(trace, layer, head, q, stats, logical, _safe(trace, layer, head))
            for layer, heads in enumerate(trace.positions)
            for head in range(len(heads))
            for q in trace.heads_of(layer, head)
        }
        return {
            (layer, head): best(_joined(trace, scored, mode, layer, head), keep, _safe(trace, layer, head))
            for layer, heads in enumerate(trace.positions)
            for head in range(len(heads))
        }

    def _safe(trace: Trace, layer: int, head: int) -> set[int]:
        held = trace.positions[layer][head]
        return {p for p in held if protect_prompt and p < trace.prompt} | set(held[len(held) - recent :])

    return act


def _normal(
    trace: Trace, layer: int, head: int, q: int, stats: Statistics, now: int, safe: set[int]
) -> dict[int, float]:
    """Position -> z-score among the positions that are not safe; the safe ones have none."""
    held = trace.positions[layer][head]
    keys = turned(trace.keys[layer][head], [-p for p in held], trace.frequencies)
    mean, moduli = stats[layer]
    scores = trig_scores(mean[q], moduli[q], keys, held, now, trace.frequencies)
    free = [i for i, p in enumerate(held) if p not in safe]
    center, spread = scores[free].mean(), scores[free].std(correction=0).clamp(min=1e-6)
    return {held[i]: float((scores[i] - center) / spread) for i in free}


def _joined(
    trace: Trace, scored: dict[tuple[int, int], dict[int, float]], mode: str, layer: int, head: int
) -> dict[int, float]:
    """One score per position of a KV head: best of its group in this layer, its mean over layers, or best of all."""
    held = trace.positions[layer][head]
    layers = [layer] if mode == "per_layer_per_head" else range(len(trace.positions))
    in_layer = []
    for at in layers:
        voters = [q for la, q in scored if la == at] if mode == "union" else trace.heads_of(at, head)
        in_layer.append({p: max(scored[at, q].get(p, 0.0) for q in voters) for p in held})
    if mode == "union":
        return {p: max(score[p] for score in in_layer) for p in held}
    return {p: sum(score[p] for score in in_layer) / len(in_layer) for p in held}

"""TriAttention's trigonometric series, from the paper's formula: what it predicts, against what happens."""

import torch
from torch import Tensor

from evals.claims.concentration import Centre
from evals.claims.passes import Pass

OFFSETS = 2 ** torch.arange(17)


def turns(frequencies: Tensor, distances: Tensor) -> Tensor:
    """(F,), (m,) -> (m, F) complex64: e^(i w_f distance), angles in float64."""
    angle = distances.double()[:, None] * frequencies
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def scores(centre: Centre, keys: Tensor, frequencies: Tensor, now: int, offsets: Tensor = OFFSETS) -> tuple:
    """(L, m, H, F) keys before RoPE at positions 0 to m - 1 -> S_trig and S_norm, each (L, Hq, m), at position `now`.

    S_trig = mean over offsets of Re sum_f E[q_f] conj(k_f) e^(i w_f (now - p + offset)); S_norm = sum_f (E|q_f| -
    |E q_f|) |k_f|. Query heads come in groups, one for each KV head.
    """
    group = centre.mean.shape[1] // keys.shape[2]
    keys = keys.transpose(1, 2).repeat_interleave(group, 1)  # (L, Hq, m, F)
    later = turns(frequencies, offsets).mean(0)
    turned = turns(frequencies, now - torch.arange(keys.shape[2])) * later
    trig = (centre.mean[:, :, None] * keys.conj() * turned).real.sum(-1)
    return trig, ((centre.modulus - centre.mean.abs())[:, :, None] * keys.abs()).sum(-1)


def curves(centre: Centre, text: Pass, frequencies: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean logit at each distance, predicted from the centres of queries and keys, and measured; (L, Hq, m) both."""
    group = text.queries.shape[2] // text.keys.shape[2]
    keys = text.keys.repeat_interleave(group, 2)  # (L, n, Hq, F)
    turned = turns(frequencies, distances)
    product = centre.mean * keys.mean(1).conj()
    predicted = (product[:, :, None] * turned).real.sum(-1)
    pairs = [
        (text.queries[:, d:] * keys[:, : keys.shape[1] - d].conj()).mean(1) for d in distances.tolist()
    ]  # (L, Hq, F) each
    return predicted, (torch.stack(pairs, 2) * turned).real.sum(-1)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, over the last dimension; 0 where one of them does not vary."""
    one, other = (x.double() - x.double().mean(-1, keepdim=True) for x in (one, other))
    spread = (one.square().sum(-1) * other.square().sum(-1)).sqrt()
    return ((one * other).sum(-1) / spread).nan_to_num(0.0)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's, over the last dimension, of numbers without ties."""
    return correlation(*(x.argsort(-1).argsort(-1) for x in (one, other)))

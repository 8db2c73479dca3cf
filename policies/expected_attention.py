"""Queries to come are like those that came: ask what they would attend to."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, Moments, Rotation, ScoringPolicy, Values


class ExpectedAttention(ScoringPolicy):
    """Keep what a Gaussian query, rotated to the positions to come, is expected to attend to, times the value's norm.

    Mean mu and covariance S are those of the pre-RoPE queries seen, per query head; R is the mean of the rotations
    to the next `horizon` positions. A slot's logit is the log of E exp(scale * q . k) for q ~ N(R mu, R S R^T): scale *
    mu'. k + scale^2 / 2 * k' S' k. Softmax over the slots but the sinks, mean over the query heads of a KV head,
    plus epsilon, times |v|. The paper keeps the sinks only; here recent tokens stay too.
    """

    name: ClassVar[str] = "expected-attention"
    paper: ClassVar[str] = "arXiv:2510.00636"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(), Values(), Moments(observes="all"), Rotation())

    horizon: int = Field(512, ge=1, le=65536, description="Positions to come, over which rotations are averaged")
    epsilon: float = Field(0.0, ge=0, le=1, description="Added to the attention, so that large values count anyway")

    def scores(self, view: LayerView) -> Tensor:
        mean, covariance = self._queries_to_come(view)
        logits = torch.stack([_logits(k, m, c) for k, m, c in zip(view.keys, mean, covariance, strict=True)])
        sinks = (view.positions < self.sinks)[:, None]
        attention = torch.softmax(logits.masked_fill(sinks, -torch.inf), dim=-1).mean(dim=1)
        return (attention + self.epsilon) * view.values.norm(dim=-1)

    def _queries_to_come(self, view: LayerView) -> tuple[Tensor, Tensor]:
        """Mean (H, G, D) and covariance (H, G, D, D), times scale and its square."""
        count, total, outer = view.moments
        mean = total.double() / count
        covariance = outer.double() / count - mean[:, :, None] * mean[:, None, :]
        ahead = torch.arange(view.logical, view.logical + self.horizon, device=total.device)
        unit = torch.eye(total.shape[-1], device=total.device)
        turn = view.rope.phases(ahead).mean(dim=0) * view.rope.factor
        turned = (
            view.rope.channels(view.rope.bands(unit) * turn, unit).double() * view.scale
        )  # x @ turned = scale * R x
        mean, covariance = mean @ turned, turned.T @ covariance @ turned
        return mean.float().unflatten(0, (view.num_heads, -1)), covariance.float().unflatten(0, (view.num_heads, -1))


def _logits(keys: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """(n, D), (G, D), (G, D, D) -> (G, n), one query head at a time."""
    return torch.stack([keys @ m + ((keys @ c) * keys).sum(dim=-1) / 2 for m, c in zip(mean, covariance, strict=True)])

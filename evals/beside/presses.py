"""Presses made from the settings of a pair, and the two that kvpress lacks; imported where kvpress is installed."""

from dataclasses import dataclass, field
from typing import Any

import kvpress
import torch
from kvpress import BasePress, ObservedAttentionPress, PyramidKVPress, ScorerPress

from evals.beside.pairs import matched_beta, ratio


@dataclass
class Guarded(ScorerPress):
    """Another press, but the first and the newest tokens always stay."""

    press: ScorerPress = field(default_factory=ScorerPress)
    sinks: int = 0
    recent: int = 0

    def post_init_from_model(self, model: Any) -> None:
        self.press.post_init_from_model(model)

    def score(self, *seen: Any, **named: Any) -> torch.Tensor:
        """(B, H, n)."""
        scores = self.press.score(*seen, **named).clone()
        scores[..., : self.sinks] = torch.inf
        scores[..., scores.shape[-1] - self.recent :] = torch.inf
        return scores


class Summed(ObservedAttentionPress):
    """Attention summed up, as H2O has it: the press' mean times the number of queries that it was taken over."""

    def score(self, *seen: Any, **named: Any) -> torch.Tensor:
        """(B, H, n)."""
        mean = super().score(*seen, **named)
        return mean * torch.arange(mean.shape[-1], 0, -1, dtype=mean.dtype)


def eager(theirs: dict[str, Any]) -> bool:
    """Whether the press reads attention weights, which only transformers' eager attention gives."""
    return issubclass(_named(theirs["press"]), ObservedAttentionPress)


def press(theirs: dict[str, Any], keep: int, held: int) -> BasePress:
    """A press that keeps this many of the tokens held, mean over the layers; `of` are the settings of a wrapped one."""
    fields = dict(theirs)
    if "of" in fields:
        return _named(fields.pop("press"))(press=press(fields.pop("of"), keep, held), **fields)
    made, sinks, recent = _named(fields.pop("press")), fields.pop("sinks", 0), fields.pop("recent", 0)
    pyramid = issubclass(made, PyramidKVPress)
    if fields.get("beta") == "matched":
        fields["beta"] = matched_beta(keep, fields["window_size"])
    # A pyramid rounds each layer's share of n * (1 - ratio); all others round n * (1 - ratio) down.
    share = 1 - keep / held if pyramid else ratio(keep, held)
    found = made(compression_ratio=share, **fields)
    return Guarded(share, found, sinks, recent) if sinks or recent else found


def _named(name: str) -> type[Any]:
    found: type[Any] = Summed if name == "Summed" else getattr(kvpress, name)
    return found

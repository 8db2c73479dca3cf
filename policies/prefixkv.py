"""Layers differ in how much attention their best tokens gather: let each keep as many as the same share of it takes."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import Calibrated, Evidence, Facts, LayerView, PolicyError, UnevenLayers
from policies.fixed_point import FixedPoint, importance

_HALVINGS = 60  # of (0, 1): float64 has no finer threshold


class PrefixKV(UnevenLayers, FixedPoint):
    """Per layer, keep the prompt tokens that its queries attended to most, as many as hold the share p of that
    layer's attention; p is the same in all layers, such that their mean is the budget.

    "Prefix" is that of the sorted tokens. Sinks and the last prompt token take the place of its last ones if they
    are not in it (the released code keeps them beside it); every layer keeps at least one token more. What the
    bisection of p leaves over goes one by one to the layers that gain most. Nothing is merged; while generating,
    each layer deletes at a fixed slot of its own. Offline, layers are given what the calibration file has for the
    share of the prompt that is kept, whatever the request.
    """

    name: ClassVar[str] = "prefixkv"
    paper: ClassVar[str] = "arXiv:2412.03409"

    profile: Literal["online", "offline"] = Field(
        "online", description="Budgets of layers from the request's own attention, or from the calibration file"
    )

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return (*super().evidence, *((Calibrated(),) if self.profile == "offline" else ()))

    @property
    def own_shares(self) -> bool:
        return True

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.profile == "offline" and "prefixkv" not in facts.calibrated:
            raise PolicyError(
                f"kv_policy {self.name!r} with profile 'offline' needs the layers' budgets from a calibration file; "
                "start the server with --kv-calibration FILE, made by `kvserve calibrate MODEL -o FILE`, "
                "or send profile 'online'",
                param="kv_policy.profile",
                reason="unsupported",
            )

    def select(self, view: LayerView, keep: int) -> Tensor:
        return self.act(view, keep).kept.expand(view.num_heads, -1)

    def own_shares_of(self, views: Sequence[LayerView], keep: int) -> list[float]:
        least, most = self.protected + 1, views[0].num_slots
        if not least <= keep <= most:
            return [float(keep)] * len(views)
        best, total = priorities(torch.stack([importance(view) for view in views])).cpu(), keep * len(views)
        if self.profile == "online":
            counts = prefix_lengths(best, total, least)
        else:
            shares = torch.tensor([_share(view, keep / most) for view in views], dtype=torch.float64)
            counts = fixed_up((shares * most).round().long().clamp(least, most), best, total, least)
        return counts.double().tolist()


def priorities(scores: Tensor) -> Tensor:
    """(L, n) -> (L, n) float64: each layer's scores, highest first, as shares of their sum."""
    best = scores.double().sort(dim=1, descending=True).values
    return best / best.sum(dim=1, keepdim=True)


def prefix_lengths(best: Tensor, total: int, least: int = 1) -> Tensor:
    """How many priorities of each layer, (L,) int64, hold the share p, with p such that they add up to `total`.

    best: (L, n) priorities, L * least <= total <= L * n; no layer gets fewer than `least`.
    """
    held = best.cumsum(dim=1)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        low, high = (p, high) if int(lengths(held, p, least).sum()) <= total else (low, p)
    return fixed_up(lengths(held, low, least), best, total, least)


def lengths(held: Tensor, p: float, least: int = 1) -> Tensor:
    """(L, n) shares held by the best 1 .. n tokens -> (L,) min{o : held by the best o >= p}, in `least` .. n."""
    reached = torch.searchsorted(held, held.new_full((len(held), 1), p))[:, 0] + 1
    return reached.clamp(least, held.shape[1])


def fixed_up(counts: Tensor, best: Tensor, total: int, least: int = 1) -> Tensor:
    """Counts (L,) in `least` .. n with what is missing to `total` added where the next priority is largest, or
    what is too much taken where the last one is smallest; best as in `prefix_lengths`."""
    missing, most = total - int(counts.sum()), best.shape[1]
    sign = 1 if missing > 0 else -1
    steps = torch.arange(min(abs(missing), most))
    ranks = counts[:, None] + steps if missing > 0 else counts[:, None] - 1 - steps
    worth = sign * best.gather(1, ranks.clamp(0, most - 1))
    worth = worth.masked_fill((ranks < least) | (ranks >= most), -torch.inf)
    # Step by step, so that equals go round the layers.
    chosen = worth.T.flatten().sort(descending=True, stable=True).indices[: abs(missing)] % len(counts)
    return counts + sign * torch.bincount(chosen, minlength=len(counts))


def _share(view: LayerView, kept: float) -> float:
    """The share of its tokens that a layer keeps by the calibration file if their mean is `kept`."""
    budgets = [0.0, *view.calibration["budgets"].tolist(), 1.0]
    shares = [0.0, *view.calibration["keep_share"].tolist(), 1.0]
    right = min(bisect_left(budgets, kept), len(budgets) - 1)
    left = max(right - 1, 0)
    part = (kept - budgets[left]) / max(budgets[right] - budgets[left], 1e-9)
    return float(shares[left] + min(max(part, 0.0), 1.0) * (shares[right] - shares[left]))

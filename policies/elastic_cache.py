"""Merge what the prompt can spare into its important tokens; while generating, delete at a fixed place."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, Mass, Merged, Values
from policies.fixed_point import Act, FixedPoint


class ElasticCache(FixedPoint):
    """Per layer, keep the prompt tokens that its queries attended to most as anchors and merge each of the others
    into the anchor nearest in position; while generating, delete at one fixed slot.

    A merged entry is the plain mean of the anchor and of all that went into it, for keys and values of all
    heads alike; keys are averaged as they are cached, that is after RoPE. Sinks and the last prompt token are
    no anchors. The budget is the share kept (gamma). A prompt compacted between its chunks is merged chunk by
    chunk, and merged entries then count as one token each.

    The released code differs from the paper; `variant: "release"` reproduces two of its defects: the anchors are
    {j : argsort(I)[j] >= number evicted} instead of the highest I, and merged contents are taken `sinks` slots
    before the evicted ones. A third one, keeping one token fewer than asked, is not: the budget holds.
    """

    name: ClassVar[str] = "elastic-cache"
    paper: ClassVar[str] = "arXiv:2407.18121"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(), Values(), Mass())

    merge: Literal["kv", "values", "none"] = Field(
        "kv", description="What of the evicted prompt tokens goes into their anchors; 'none' only evicts"
    )
    variant: Literal["paper", "release"] = Field(
        "paper", description="'release' has the released code's defects in choosing anchors and merging"
    )

    def ranked(self, importance: Tensor, keep: int) -> Tensor:
        if self.variant == "paper":
            return super().ranked(importance, keep)
        last = len(importance) - 1
        order = torch.argsort(importance[self.sinks : last], stable=True)
        anchors = (order >= len(importance) - keep).nonzero()[:, 0] + self.sinks
        every = torch.arange(last + 1, device=importance.device)
        return torch.cat([every[: self.sinks], anchors, every[last:]])

    def select(self, view: LayerView, keep: int) -> Tensor | Merged:
        act = self.act(view, keep)
        stay = act.kept.expand(view.num_heads, -1)
        if self.merge == "none" or act.prompt == 0:
            return stay
        gone, into = self._buckets(view.positions[0], act)
        keys = _means(view.keys, act, gone, into) if self.merge == "kv" else None
        values = _means(view.values, act, gone, into)
        return Merged(stay, keys, values, int(torch.isin(into, act.stay).sum()))

    def _buckets(self, positions: Tensor, act: Act) -> tuple[Tensor, Tensor]:
        """Slots of the prompt that go, ascending, and for each the index in `act.slots` of its anchor."""
        kept = act.slots[act.slots < act.prompt]
        anchors = kept[self.sinks : -1]
        if len(anchors) == 0:
            raise ValueError(
                f"{self.name}: {len(kept)} tokens leave no anchor beside {self.sinks} sinks and the last one"
            )
        goes = torch.ones(act.prompt, dtype=torch.bool, device=kept.device)
        goes[kept] = False
        gone = goes.nonzero()[:, 0]
        if self.variant == "release":
            gone = gone - self.sinks
        return gone, nearest(positions[anchors], positions[gone]) + self.sinks


def nearest(anchors: Tensor, points: Tensor) -> Tensor:
    """For each of (m,) points the index of the nearest of (a,) ascending anchors, of equals the lower one."""
    right = torch.searchsorted(anchors, points).clamp(max=len(anchors) - 1)
    left = (right - 1).clamp(min=0)
    closer = (anchors[right] - points).abs() < (points - anchors[left]).abs()
    return torch.where(closer, right, left)


def _means(contents: Tensor, act: Act, gone: Tensor, into: Tensor) -> Tensor:
    """(H, n, D) -> (H, keep, D): what stays, anchors as the mean of themselves and what went into them."""
    counts = contents.new_ones(len(act.slots)).index_add(0, into, contents.new_ones(len(into)))
    sums = contents[:, act.slots].index_add(1, into, contents[:, gone])
    return sums[:, act.stay] / counts[act.stay, None]

"""What Elastic Cache and PrefixKV share: prompt tokens ranked by attention, then deletion at one fixed slot."""

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from kvserve.policy import GathersMass, LayerView, top_slots


class Act(NamedTuple):
    """What one compaction of a layer leaves; both steps of it may be the identity."""

    slots: Tensor  # (m,) int64, ascending: left by the ranking of the prompt, generated tokens included
    prompt: int  # how many slots were ranked, the first ones; 0 = none
    stay: Tensor  # (keep,) int64, ascending: which of `slots` the deletion at the fixed slot leaves

    @property
    def kept(self) -> Tensor:
        """(keep,) int64: the slots that stay."""
        return self.slots[self.stay]


class FixedPoint(GathersMass):
    """Two stages; all heads of a layer keep the same slots.

    Prompt: `sinks`, the last token and those with the most attention, I[i] = mean over all query heads of
    the sum over the prompt's queries. Generating: nothing is ranked; whatever is too much goes from slot
    x = (slots that the prompt kept) + `distance` on. x never moves, so first what lay between x and the
    prompt's end goes, then generated tokens, oldest first. The papers delete slot x after a token; deleting
    the k slots from x on in one round leaves the same.

    A first act that comes after the prompt's end (asynchronous scheduling, pressure) does both: the prompt goes
    to the size it had been given at its end, then slots from x on go.
    """

    per_head: ClassVar[bool] = False

    sinks: int = Field(1, ge=0, le=1024, description="First tokens of the prompt, always kept")
    distance: int = Field(
        -25,
        ge=-65536,
        le=65536,
        description="While generating, tokens are deleted at slot (slots kept of the prompt) + distance, or at slot "
        "`distance` if that is positive; at half of what was kept of the prompt if that slot is outside it",
    )

    @property
    def protected(self) -> int:
        return self.sinks + 1  # the last one of the prompt

    def ranked(self, importance: Tensor, keep: int) -> Tensor:
        """(n,) importance of prompt tokens -> (keep,) slots that stay, ascending."""
        scores = importance.to(torch.float32).clone()
        scores[: self.sinks] = torch.inf
        scores[-1] = torch.inf
        return top_slots(scores[None], keep)[0]

    def act(self, view: LayerView, keep: int) -> Act:
        """Both stages, as far as they are due; notes the fixed slot when the prompt is complete."""
        if view.logical < view.prompt:  # between chunks: all there is, and more of the prompt will come
            return Act(self._best(view, view.num_slots, keep), view.num_slots, torch.arange(keep, device=_device(view)))
        slots, ranked = torch.arange(view.num_slots, device=_device(view)), 0
        if "fixed" not in view.memo:
            held = int((view.positions[0] < view.prompt).sum())
            stay = min(held, self._prompt_keep(view, keep))
            if stay < held:
                slots, ranked = torch.cat([self._best(view, held, stay), slots[held:]]), held
            view.memo["fixed"] = self.fixed_slot(stay)
        return Act(slots, ranked, _without(slots, view.memo["fixed"], keep))

    def fixed_slot(self, kept: int) -> int:
        """x, for a prompt of which `kept` slots stayed: within them and behind the sinks."""
        x = self.distance if self.distance > 0 else kept + self.distance
        return x if max(1, self.sinks) <= x < kept else max(self.sinks, kept // 2)

    def _prompt_keep(self, view: LayerView, keep: int) -> int:
        """What this layer would have kept at the prompt's end, if it keeps `keep` now."""
        then, now = (self.target(seen, view.prompt) for seen in (view.prompt, view.logical))
        return max(round(keep * then / max(1, now)), self.protected + 1)

    def _best(self, view: LayerView, held: int, keep: int) -> Tensor:
        return self.ranked(importance(view)[:held], keep)


def importance(view: LayerView) -> Tensor:
    """(n,): attention that each slot got, summed over the prompt's queries, mean over the layer's query heads."""
    return view.over_heads(view.mass.mean(dim=-1))


def _without(slots: Tensor, x: int, keep: int) -> Tensor:
    """Indices that stay if as many go from x on as are too much; the newest one always stays."""
    x = min(x, keep - 1)
    return torch.cat([torch.arange(x), torch.arange(len(slots) - keep + x, len(slots))]).to(slots.device)


def _device(view: LayerView) -> torch.device:
    return view.positions.device

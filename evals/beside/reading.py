"""A prompt read once, and what each press leaves of it; imported where kvpress is installed."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from kvpress import BasePress
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class ReadLayer(NamedTuple):
    """What kvpress shows a press of one layer: the arguments of `BasePress.compress`."""

    module: Any
    hidden_states: Tensor
    keys: Tensor  # (1, H, n, D)
    values: Tensor
    attentions: Tensor | None  # (1, Hq, n, n), if the model's attention is eager
    kwargs: dict[str, Any]


@dataclass
class Reading(BasePress):
    """A press that drops nothing and notes what it sees.

    kvpress compresses a layer's cache when the layer's attention is done, so what is dropped does not change how the
    rest of the prompt is read. So one reading serves every press: `cache` is what its own forward hook would leave.
    """

    layers: list[ReadLayer] = field(default_factory=list)

    def compress(self, *seen: Any) -> tuple[Tensor, Tensor]:
        self.layers.append(ReadLayer(*seen))
        return self.layers[-1].keys, self.layers[-1].values

    @torch.inference_mode()
    def left(self, press: BasePress, model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
        """Keys and values that the press leaves in each layer, (1, H, kept, D)."""
        press.post_init_from_model(model)
        return [press.compress(*layer) for layer in self.layers]

    @torch.inference_mode()
    def cache(self, press: BasePress | None, model: PreTrainedModel) -> DynamicCache:
        """A cache with what the press leaves, all of it without one."""
        made = DynamicCache()
        whole = [(layer.keys, layer.values) for layer in self.layers]
        for index, (keys, values) in enumerate(whole if press is None else self.left(press, model)):
            made.update(keys, values, index)
        return made


def slots(left: Tensor, keys: Tensor) -> Tensor:
    """(H, kept) ascending: which of the keys (1, H, n, D) are left (1, H, kept, D). Keys are copied bit for bit."""
    same = (left[0, :, :, None] == keys[0, :, None]).all(dim=-1)  # (H, kept, n)
    if not bool((same.sum(dim=-1) == 1).all()):
        raise ValueError("two tokens of a layer have equal keys, so it cannot be told which of them was kept")
    return same.int().argmax(dim=-1).sort(dim=-1).values


@torch.inference_mode()
def read(model: PreTrainedModel, ids: list[int]) -> tuple[Reading, int]:
    """Read tokens under kvpress' hooks; also the most likely next token."""
    reading = Reading()
    with reading(model):
        out = model(input_ids=torch.tensor([ids]), past_key_values=DynamicCache(), logits_to_keep=1)
    return reading, int(out.logits[0, -1].argmax())

"""Passes of stock transformers over a text: attention, and queries and keys as they are before RoPE."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from evals.items import GENERATORS, world
from models.tasks.scene import World, tokens_of
from models.training.evaluate import load
from models.training.family import FAMILY


@dataclass(frozen=True)
class Pass:
    """One text, L layers with Hq query and H KV heads of F bands."""

    attention: Tensor  # (L, Hq, n, n) float32
    queries: Tensor  # (L, n, Hq, F) complex64
    keys: Tensor  # (L, n, H, F) complex64
    answers: int  # tokens at the end that the model is to produce


class Watched:
    """A model that keeps what enters RoPE."""

    def __init__(self, name: str) -> None:
        self.tokenizer, self.model = load(FAMILY[name].folder)
        self.model.set_attn_implementation("eager")
        self.frequencies: Tensor = self.model.model.rotary_emb.inv_freq.double()
        self._seen: dict[str, list[Tensor]] = {"q_norm": [], "k_norm": []}
        for layer in self.model.model.layers:
            for part, seen in self._seen.items():
                getattr(layer.self_attn, part).register_forward_hook(_keeper(seen))

    @torch.inference_mode()
    def read(self, ids: list[int], answers: int = 0) -> Pass:
        for seen in self._seen.values():
            seen.clear()
        attention = self.model(torch.tensor([ids]), output_attentions=True).attentions
        queries, keys = (torch.stack(seen) for seen in self._seen.values())
        return Pass(torch.stack([layer[0] for layer in attention]), queries, keys, answers)


def _keeper(seen: list[Tensor]) -> Callable[[Any, Any, Tensor], None]:
    return lambda _module, _inputs, out: seen.append(complex_pairs(out[0]))


def complex_pairs(x: Tensor) -> Tensor:
    """(..., 2 F) -> (..., F) complex: RoPE turns channels f and f + F together."""
    return torch.complex(*x.float().chunk(2, -1))


def passes(model: Watched, task: str, length: int, count: int, held_out: bool = True) -> Iterator[Pass]:
    """`count` texts of about `length` tokens, answer included, with a progress bar; the same at every call."""
    texts = world() if held_out else _training()
    for number in tqdm(range(count), desc=f"attention, {task}", unit="text", leave=False):
        scene = GENERATORS[task](Random(f"claims/{task}/{length}/{number}"), texts, length, 1)
        ids, answers = tokens_of(model.tokenizer, scene.completion())
        yield model.read(ids, sum(answers))


@lru_cache(maxsize=1)
def _training() -> World:
    """The prose that the models were trained in, as `kvserve calibrate` reads."""
    return World(world().tokenizer, held_out=False)


@lru_cache(maxsize=3)
def watched(name: str) -> Watched:
    """A model of the family, loaded once."""
    return Watched(name)

"""One shape, served: its folder, its answers on stock vLLM, an engine with kvserve, and the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine import harness
from tests.zoo.making import write
from tests.zoo.reference import Reference
from tests.zoo.scores import HORIZON
from tests.zoo.shapes import Shape

PROMPT, LENGTH, BUDGET = 230, 40, 72
OWN: dict[str, dict[str, Any]] = {
    "expected-attention": {"horizon": HORIZON},
    "pyramidkv": {"decode": False},  # its window is longer than a round: old queries have seen what is gone by then
}
SETTINGS: dict[str, Any] = {
    "skip_tokenizer_init": True, "max_model_len": 512, "max_num_batched_tokens": 128, "blocks": 640,
}  # fmt: skip


@dataclass
class Served:
    """What the tests of one shape share."""

    shape: Shape
    folder: Path
    stock: list[tuple[list[int], list[float]]]  # answers to `prompts`
    llm: Any

    @classmethod
    def start(cls, shape: Shape, folder: Path) -> "Served":
        write(shape, folder)
        settings = {**SETTINGS, "model": folder, **shape.engine}
        engine = harness.start(kv=False, **settings)
        stock = [harness.said(o) for o in harness.generate(engine, prompts(), [None] * len(prompts()), LENGTH)]
        harness.stop(engine)
        return cls(shape, folder, stock, harness.start(**settings))

    def policies(self, **fields: Any) -> list[dict[str, Any]]:
        """Every policy that this engine serves, with these fields; none if it is to refuse all."""
        found = []
        for policy in harness.policies(self.llm):
            found.append({**policy, **OWN.get(policy["name"], {}), **fields})
        return found

    def rounds(self, chosen: Sequence[Any]) -> dict[int, list[tuple[int, Tensor]]]:
        """Selections of one request by the model's own numbers of layers."""
        layers = self.shape.full
        by_layer: dict[int, list[tuple[int, Tensor]]] = {}
        for each in sorted(chosen, key=lambda s: s.logical):
            layer = each.layer if layers is None else layers[each.layer]
            by_layer.setdefault(layer, []).append((each.logical, each.positions))
        return by_layer

    def needs_exactness(self) -> None:
        if not self.shape.exact:
            pytest.skip(f"stock vLLM on {self.shape.name} is not that exact: its kernel takes 16-bit numbers only")

    def reference(self) -> Reference:
        return Reference(self.folder, self.shape.rotation, **self.shape.reference)


def prompts() -> list[list[int]]:
    return [harness.tokens(n, seed=n) for n in (90, PROMPT, 300)]


def difference(said: tuple[list[int], list[float]], logps: Tensor) -> float:
    """Between the log-probabilities of the two engines."""
    return float((torch.tensor(said[1]) - logps).abs().max())

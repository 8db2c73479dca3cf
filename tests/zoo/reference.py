"""The independent engine: transformers in eager attention, float32, one teacher-forced pass per request.

Prompt and answer are read at once; what a compaction evicted is hidden from the queries after it, layer by layer
and head by head. Nothing of kvserve is imported.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

Rounds = Mapping[int, Sequence[tuple[int, Tensor]]]
"""Layer -> (tokens seen, kept positions (KV heads, kept)), in the order of the compactions."""


@dataclass
class ReferencePass:
    """What the model said and did over T tokens, by layer."""

    logps: Tensor  # (T, vocabulary)
    weights: dict[int, Tensor] = field(default_factory=dict)  # (Hq, T, T): after softmax, soft cap and sinks
    keys: dict[int, Tensor] = field(default_factory=dict)  # (heads, T, D), as they are cached
    values: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)  # (Hq, T, D), before rotation; if it is recorded
    turns: dict[int, Tensor] = field(default_factory=dict)  # (T, D, D): x @ turns[p] is x rotated to position p

    def said(self, prompt: int, answer: Sequence[int]) -> Tensor:
        """Log-probabilities of the answer's tokens."""
        rows = torch.arange(prompt - 1, prompt + len(answer) - 1)
        return self.logps[rows, torch.tensor(answer)]


def hidden(rounds: Sequence[tuple[int, Tensor]], tokens: int) -> Tensor:
    """(KV heads, tokens, tokens) bool: which tokens (last axis) are gone for a query."""
    heads = rounds[0][1].shape[0]
    gone = torch.zeros(heads, tokens, tokens, dtype=torch.bool)
    for logical, kept in rounds:
        lost = torch.ones(heads, logical, dtype=torch.bool).scatter(1, kept, False)
        gone[:, logical:, :logical] |= lost[:, None]
    return gone


class Reference:
    """A model of the zoo as transformers runs it."""

    def __init__(self, folder: Path, rotation: bool, **config: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", **config
        ).eval()
        self.rotation = rotation
        self._code = sys.modules[type(self.model).__module__]
        self._rotated: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._unrotated: dict[int, Tensor] = {}
        self._at = -1

    @cached_property
    def attention(self) -> dict[int, nn.Module]:
        """By number of the layer; those that are no attention (recurrent ones) are left out."""
        return {
            module.layer_idx: module
            for module in self.model.modules()
            if hasattr(module, "layer_idx") and "Attention" in type(module).__name__
        }

    @torch.no_grad()
    def read(self, tokens: Sequence[int], rounds: Rounds = {}) -> ReferencePass:  # noqa: B006
        """One pass over all tokens with what the rounds evicted hidden."""
        weights: dict[int, Tensor] = {}
        gone = {layer: hidden(made, len(tokens)) for layer, made in rounds.items() if made}
        with self._hooked(gone, weights), self._recorded():
            out = self.model(torch.tensor([tokens]), use_cache=True)
        read = ReferencePass(torch.log_softmax(out.logits[0].float(), dim=-1), weights)
        for layer in self.attention:
            cached = out.past_key_values.layers[layer]
            read.keys[layer], read.values[layer] = cached.keys[0], cached.values[0]
        read.queries = self._unrotated | {layer: turned[0][0][0] for layer, turned in self._rotated.items()}
        return read

    @torch.no_grad()
    def turns(self, tokens: int) -> dict[int, Tensor]:
        """Layer -> (tokens, D, D), the rotation to each position; layers that do not rotate are left out."""
        self.read([5] * tokens)
        found = {}
        for layer, [(query, cos, sin)] in self._rotated.items():
            unit = torch.eye(query.shape[-1])[None, :, None].expand(-1, -1, tokens, -1)  # one "head" per channel
            rotated, _ = self._code.apply_rotary_pos_emb(unit, unit, cos, sin)
            found[layer] = rotated[0].transpose(0, 1)
        return found

    @contextmanager
    def _hooked(self, gone: Mapping[int, Tensor], weights: dict[int, Tensor]) -> Iterator[None]:
        handles = []
        for layer, module in self.attention.items():
            handles += [
                module.register_forward_pre_hook(self._hiding(layer, gone.get(layer)), with_kwargs=True),
                module.register_forward_hook(lambda _m, _i, out, at=layer: weights.update({at: out[1][0]})),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hiding(self, layer: int, gone: Tensor | None) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            self._at = layer
            if gone is None:
                return None
            mask = kwargs["attention_mask"]
            heads = self.model.config.get_text_config().num_attention_heads
            spread = gone.repeat_interleave(heads // len(gone), dim=0)[None]
            return args, {**kwargs, "attention_mask": mask.masked_fill(spread, torch.finfo(torch.float32).min)}

        return hook

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Note what each layer gives to its rotation, or, where it has none, to attention."""
        self._rotated, self._unrotated = {}, {}
        if not self.rotation:
            yield
            return
        rotate, attend = self._code.apply_rotary_pos_emb, self._code.eager_attention_forward

        def rotating(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._rotated.setdefault(self._at, []).append((q, cos, sin))
            return rotate(q, k, cos, sin, *args, **kwargs)

        def attending(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._at not in self._rotated:
                self._unrotated[self._at] = query[0]
            return attend(module, query, *args, **kwargs)

        self._code.apply_rotary_pos_emb, self._code.eager_attention_forward = rotating, attending
        try:
            yield
        finally:
            self._code.apply_rotary_pos_emb, self._code.eager_attention_forward = rotate, attend

"""Attention that the slots of a prompt get while the model repeats it, found by a side pass (KVzip, arXiv:2505.23416).

The model is asked to repeat the prompt and is given the prompt as its answer, CHUNK tokens at a time; no row of it
enters the cache. A slot is needed as much as any of these queries looked at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvserve.cache.contents import take
from kvserve.cache.records import Location, Record
from kvserve.evidence.observer import Layer, Observer, Upcoming
from kvserve.evidence.side_pass import whole_pass
from kvserve.policy import LayerView

CHUNK = 2048  # tokens that are repeated at a time: the paper's
OVERLAP = 8  # tokens before a chunk that the model is told to go on from
LEAST = 64  # tokens that it must be possible to repeat at a time
TILE = 128  # queries at a time


@dataclass
class Repeated:
    """What is known of one request."""

    upto: int = 0  # tokens that have been repeated
    layers: dict[int, Tensor] = field(default_factory=dict)  # (H, slots): the most attention that each slot got


class Repeater(Observer):
    """Repeats the prompts of requests whose policy asks for it, when they are about to be compacted."""

    def __init__(self, runner: Any, attached: Sequence[tuple[Layer, Any]]) -> None:
        self._runner, self._attached = runner, attached

    def begin(self, record: Record, first: int) -> None:
        if record.asks.side_pass:
            record.observed[self] = Repeated()

    def prepare(self, rounds: Sequence[Upcoming]) -> None:
        for each in rounds:
            try:
                self._repeat(each)
            except Exception as error:  # said when the policy is asked what stays
                each.record.error = error

    def _repeat(self, asked: Upcoming) -> None:
        """Repeat what has been read of the prompt since the last time."""
        known: Repeated = asked.record.observed[self]
        end = min(asked.logical, asked.record.prompt)
        if known.upto >= end:
            return
        prompt, tokenizer = _text(asked.record), _tokenizer(self._runner)
        start = known.upto
        while start < end:
            asking = _instruction(tokenizer, prompt[max(0, start - OVERLAP) : start])
            room = self._runner.max_model_len - asked.logical - len(asking)
            if room < min(LEAST, end - start):
                raise ValueError(
                    f"a prompt of {asked.logical} tokens leaves no room to repeat it: the model takes "
                    f"{self._runner.max_model_len} tokens"
                )
            stop = min(end, start + min(CHUNK, room))
            self._go(asked, known, [*asking, *prompt[start:stop]], start, stop)
            start = stop
        known.upto = end

    def _go(self, asked: Upcoming, known: Repeated, tokens: list[int], start: int, stop: int) -> None:
        """Take these tokens, which repeat those of positions [start, stop), over the cache."""
        device = self._runner.device
        ids = torch.tensor(tokens, device=device, dtype=torch.int32)
        at = torch.arange(asked.logical, asked.logical + len(tokens), device=device)
        forwards = {
            module: partial(self._attention, known, layer, asked.where[layer.group], slice(start, stop))
            for layer, module in self._attached
        }
        whole_pass(self._runner, ids, at, forwards)

    def _attention(
        self, known: Repeated, layer: Layer, where: Location, repeated: slice, query: Tensor, key: Tensor,
        value: Tensor, output_shape: Any = None, output_dtype: Any = None,
    ) -> Tensor:  # fmt: skip
        """In the place of a layer's attention: on the cache and the rows before; notes what the slots got."""
        cached = [tokens.decode(tokens.read(where.blocks, where.slots)) for tokens in layer.cache]
        own = [rows.reshape(len(rows), layer.num_kv_heads, -1).transpose(0, 1).float() for rows in (key, value)]
        keys, values = (torch.cat(pair, dim=1) for pair in zip(cached, own, strict=True))
        offset = where.logical - where.slots
        shown = slice(repeated.start - offset, repeated.stop - offset)
        queries = query.reshape(len(query), layer.num_kv_heads, -1, keys.shape[-1]).permute(1, 2, 0, 3).float()
        out, most = looked(layer, queries, keys, values, shown)
        fresh = known.layers.get(layer.index, most.new_zeros(layer.num_kv_heads, 0))
        scores = _padded(fresh, where.slots)
        scores[:, shown] = torch.maximum(scores[:, shown], most)
        known.layers[layer.index] = scores
        return out.permute(2, 0, 1, 3).reshape(len(query), -1).to(query.dtype)

    def show(self, view: LayerView, record: Record, layer: Layer, where: Location) -> None:
        known: Repeated = record.observed[self]
        if layer.index in known.layers:
            view.repeated = _padded(known.layers[layer.index], where.slots)

    def compacted(self, record: Record, layer: Layer, stay: Tensor) -> None:
        known: Repeated = record.observed[self]
        if layer.index in known.layers:
            known.layers[layer.index] = take(_padded(known.layers[layer.index], int(stay.max()) + 1), stay)


def looked(layer: Layer, queries: Tensor, keys: Tensor, values: Tensor, shown: slice) -> tuple[Tensor, Tensor]:
    """Attention of rows that stand behind the cached slots, and the most of it that some slots got.

    queries: (H, G, r, D); keys, values: (H, n + r, D), the rows' own last. Returns (H, G, r, D), and (H, shown): the
    maximum over the head's queries of attention on the slots `shown` and the rows before alone, as the paper scores.
    """
    heads, group, rows, _ = queries.shape
    cached = keys.shape[1] - rows
    out, most = torch.empty_like(queries[..., : values.shape[-1]]), keys.new_zeros(heads, shown.stop - shown.start)
    for head in range(heads):
        of_layer = slice(head * group, (head + 1) * group)
        for start in range(0, rows, TILE):
            tile = slice(start, min(start + TILE, rows))
            logits = layer.softmax.logits(queries[head, :, tile] @ keys[head].T)
            at = torch.arange(tile.start, tile.stop, device=keys.device)[:, None]
            unseen = torch.arange(rows, device=keys.device) > at
            logits[:, :, cached:].masked_fill_(unseen, float("-inf"))
            out[head, :, tile] = layer.softmax.probabilities(logits, of_layer) @ values[head]
            few = torch.cat([logits[:, :, shown], logits[:, :, cached:]], dim=-1)
            scores = layer.softmax.probabilities(few, of_layer)[:, :, : most.shape[1]]
            most[head] = torch.maximum(most[head], scores.amax(dim=(0, 1)))
    return out, most


def _text(record: Record) -> Sequence[int]:
    """The prompt's token ids. Raises ValueError for a request of which they do not say all."""
    if record.text is None:
        raise ValueError("only text can be repeated: the prompt has embeddings or pictures")
    return record.text


def _instruction(tokenizer: Any, last: Sequence[int]) -> list[int]:
    """What the model is asked, as the paper does: from the beginning, or from the last tokens on."""
    if not last:
        return list(tokenizer.encode("\n\nRepeat the previous context:", add_special_tokens=False))
    before = tokenizer.encode("\n\nRepeat the previous context starting with `", add_special_tokens=False)
    return [*before, *last, *tokenizer.encode("`:", add_special_tokens=False)]


def _tokenizer(runner: Any) -> Any:
    from vllm.tokenizers import cached_tokenizer_from_config

    if runner.model_config.skip_tokenizer_init:
        raise ValueError("a prompt can be repeated only with a tokenizer: start without --skip-tokenizer-init")
    return cached_tokenizer_from_config(runner.model_config)


def _padded(scores: Tensor, slots: int) -> Tensor:
    """(H, m) -> (H, slots), zeros for the tokens that came since."""
    if scores.shape[1] >= slots:
        return scores[:, :slots]
    return torch.cat([scores, scores.new_zeros(scores.shape[0], slots - scores.shape[1])], dim=1)

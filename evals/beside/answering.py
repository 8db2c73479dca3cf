"""Greedy answers from caches that presses have left; imported where kvpress is installed."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel


def lengths(cache: DynamicCache) -> tuple[int, ...]:
    """Tokens held, by layer."""
    return tuple(int(cache.get_seq_length(layer)) for layer in range(len(cache)))


@torch.inference_mode()
def answers(pipe: Any, caches: Sequence[Any], question: list[int], first: int, position: int, new: int) -> list[str]:
    """What follows the question, after `position` tokens of which the caches hold what is left.

    Without a question, `first` is the answer's first token. Caches of like lengths are answered from together, which
    spares an hour; a cache that no other is like, by the loop of kvpress' pipeline.
    """
    alike = defaultdict(list)
    for index, cache in enumerate(caches):
        alike[lengths(cache)].append(index)
    found: dict[int, str] = {}
    for held, members in alike.items():
        group = [caches[index] for index in members]
        if len(group) == 1 or len(set(held)) > 1:
            texts = [_alone(pipe, cache, question, first, position, new) for cache in group]
        else:
            texts = _together(pipe, _stacked(group), question, first, position, new)
        found |= dict(zip(members, texts, strict=True))
    return [found[index] for index in range(len(caches))]


def _together(pipe: Any, cache: Any, question: list[int], first: int, position: int, new: int) -> list[str]:
    rows = cache.layers[0].keys.shape[0]
    told = [] if question else [torch.full((rows,), first)]
    latest = torch.tensor([question or [first]]).expand(rows, -1)
    while len(told) < new:
        at = torch.arange(position, position + latest.shape[1])[None].expand(rows, -1)
        logits = pipe.model(input_ids=latest, past_key_values=cache, position_ids=at, logits_to_keep=1).logits
        position += latest.shape[1]
        told.append(logits[:, -1].argmax(dim=-1))
        latest = told[-1][:, None]
    return [_text(pipe, row.tolist()) for row in torch.stack(told, dim=1)]


def _text(pipe: Any, ids: list[int]) -> str:
    """Up to the end of the text."""
    end = next((at for at, token in enumerate(ids) if token in _ends(pipe)), len(ids))
    return str(pipe.tokenizer.decode(ids[:end], skip_special_tokens=True))


def _ends(pipe: Any) -> Sequence[int]:
    """Tokens that end a text."""
    ends = pipe.model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _stacked(caches: Sequence[Any]) -> DynamicCache:
    """One cache, a row for each."""
    made = DynamicCache()
    for index in range(len(caches[0])):
        layers = [cache.layers[index] for cache in caches]
        keys, values = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
        made.update(keys, values, index)
    return made


def _alone(pipe: Any, cache: DynamicCache, question: list[int], first: int, position: int, new: int) -> str:
    """By the loop of kvpress' pipeline."""
    if not question:
        told = _text(pipe, [first])
        done = new == 1 or first in _ends(pipe)
        return told if done else told + _alone(pipe, cache, [first], first, position, new - 1)
    if len(set(lengths(cache))) > 1:
        *some, last = question
        _one_by_one(pipe.model, cache, some, position)
        question, position = [last], position + len(some)
    asked = torch.tensor([question])
    return str(pipe.generate_answer(asked, cache=cache, context_length=position, max_new_tokens=new))


def _one_by_one(model: PreTrainedModel, cache: DynamicCache, ids: list[int], position: int) -> None:
    """Read tokens singly: transformers makes one mask for all layers, as long as the first one's cache."""
    for at, token in enumerate(ids, position):
        model(
            input_ids=torch.tensor([[token]]),
            past_key_values=cache,
            position_ids=torch.tensor([[at]]),
            logits_to_keep=1,
        )

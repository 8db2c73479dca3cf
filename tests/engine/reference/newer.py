"""ChunkKV, CriticalKV, LagKV and KVzip, straight from their papers."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import transformers
from torch import Tensor

from tests.engine.reference.engine import Keep, Round, Trace
from tests.engine.reference.rules import Pick, best, each, ends, periodic, pooled


def once(budget: int, pick: Pick) -> Round:
    """Act when the prompt is complete, and never again."""

    def act(trace: Trace, logical: int, physical: int, fresh: bool) -> Keep | None:
        if not fresh or physical <= budget:
            return None
        return each(trace, lambda layer, head, held: pick(trace, layer, head, held))

    return act


def votes(trace: Trace, layer: int, head: int, window: int) -> list[float]:
    """Mean attention of the prompt's last queries on each token before them. Nothing was dropped so far."""
    before = trace.prompt - window
    rows = [trace.rows[q][layer][list(trace.heads_of(layer, head)), :before] for q in range(before, trace.prompt)]
    return torch.stack(rows).mean(dim=(0, 1)).tolist()


def chunkkv(budget: int, size: int = 10, window: int = 32) -> Round:
    """Chunks of the text by the mean vote of their tokens before the window."""

    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        vote = votes(trace, layer, head, window)
        chunks = {c: vote[c * size : (c + 1) * size] for c in range(-(-len(vote) // size))}
        score = {p: sum(chunks[p // size]) / len(chunks[p // size]) for p in range(len(vote))}
        newest = held[len(vote) :]
        return best({**score, **dict.fromkeys(newest, 0.0)}, budget, set(newest))

    return once(budget, pick)


def criticalkv(model, budget: int, first: float = 0.5, epsilon: float = 1e-4, window: int = 32) -> Round:
    """A share by pooled votes alone, the rest by votes times the L1 norm of the projected values."""

    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        vote = pooled(votes(trace, layer, head, window), 7)
        newest = set(held[len(vote) :])
        certain = set(best(dict(enumerate(vote)), int(first * (budget - window)), set()))
        sizes = projected(model, layer, trace.heads_of(layer, head), trace.values[layer][head])
        score = {p: (v + epsilon) * sizes[p] for p, v in enumerate(vote)}
        return best({**score, **dict.fromkeys(newest, 0.0)}, budget, certain | newest)

    return once(budget, pick)


def projected(model, layer: int, heads: range, values: Tensor) -> list[float]:
    """(n, D) values -> L1 norm of what each adds to the layer's output, mean over these query heads."""
    weight, size = model.model.layers[layer].self_attn.o_proj.weight, values.shape[1]
    norms = [(values @ weight[:, q * size : (q + 1) * size].T).abs().sum(dim=1) for q in heads]
    return torch.stack(norms).mean(dim=0).tolist()


def lagkv(budget: int, lag: int = 128, sinks: int = 16, recent: int = 32, slack: int = 128) -> Round:
    """Rank within each partition by how far keys and values stand out from the range of the next partition."""

    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        both = trace.keys[layer][head], trace.values[layer][head]
        score = dict.fromkeys(held, 1.0)
        for start in range(sinks, len(held) - 2 * lag + 1, lag):
            part, following = slice(start, start + lag), slice(start + lag, start + 2 * lag)
            found = sum(torch.softmax(spread(x[part], x[following]), dim=0) for x in both)
            for rank, i in enumerate(found.argsort(stable=True).tolist()):
                score[held[start + i]] = rank / lag
        return best(score, budget, ends(held, sinks, recent))

    return periodic(budget, slack, pick)


def spread(part: Tensor, following: Tensor) -> Tensor:
    """(lag, D) -> (lag,): deviation over channels, each scaled by its range in the next partition."""
    low, high = following.amin(dim=0), following.amax(dim=0)
    return ((part - low) / (high - low).clamp(min=1e-6)).std(dim=1)


def kvzip(model, words, prompt_of, budget: int, sinks: int = 4, recent: int = 1) -> Round:
    """By the most attention that a token gets while the prompt is repeated. prompt_of: its length -> its tokens."""

    def pick(trace: Trace, layer: int, head: int, held: list[int]) -> list[int]:
        scores = repetition(model, words, tuple(prompt_of(trace.prompt)))[layer, head].tolist()
        return best(dict(zip(held, scores, strict=True)), budget, ends(held, sinks, recent))

    return once(budget, pick)


def asked(words, prompt: Sequence[int], start: int) -> list[int]:
    """The words that the paper asks with, as tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    if start == 0:
        return encode("\n\nRepeat the previous context:")
    return [*encode("\n\nRepeat the previous context starting with `"), *prompt[start - 8 : start], *encode("`:")]


@lru_cache
@torch.no_grad()
def repetition(model, words, prompt: tuple[int, ...], chunk: int = 2048) -> Tensor:
    """(layers, H, n): straight from the paper, with the whole matrix of attention."""
    heads, scores = model.config.num_key_value_heads, []
    for start in range(0, len(prompt), chunk):
        part = prompt[start : start + chunk]
        rows = [*asked(words, prompt, start), *part]
        out = model(torch.tensor([[*prompt, *rows]]), output_attentions=True)
        seen = torch.stack([layer[0, :, len(prompt) :] for layer in out.attentions])  # (L, Hq, r, n + r)
        few = torch.cat([seen[..., start : start + len(part)], seen[..., len(prompt) :]], dim=-1)
        few = few / few.sum(-1, keepdim=True)  # the softmax over these alone
        scores.append(few[..., : len(part)].amax(2).unflatten(1, (heads, -1)).amax(2))
    return torch.cat(scores, dim=-1)

"""Kwai summary attention (arXiv:2604.24432) in one pass: text rows and summary rows side by side under one whole mask.

Stock transformers weights, float32, no cache, nothing of kvserve. `parameters` are the tensors of a summary file:
``embedding`` (1, hidden) and ``layers.{i}.q_proj``, ``.k_proj``, ``.v_proj``, whose rows are those of the model's own.
`kinds` says for each layer "summary" or "full". Rows: all text in order, then one summary per whole chunk.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8


class SummaryPass(NamedTuple):
    """What one pass over a text computes."""

    logits: Tensor  # (tokens, vocabulary)
    keys: list[Tensor]  # layer -> (KV heads, chunks, head_dim) of the summaries, after RoPE
    values: list[Tensor]  # layer -> (KV heads, chunks, head_dim) of the summaries


def visible(tokens: int, window: int, kind: str, chunk: int = CHUNK) -> Tensor:
    """Which key each row sees, (rows, rows) bool."""
    text, summary = torch.arange(tokens), torch.arange(tokens // chunk)
    seen = torch.zeros(len(text) + len(summary), len(text) + len(summary), dtype=torch.bool)
    first = (text // chunk - window).clamp(min=0)  # the first chunk in the window of each text row
    seen[:tokens, :tokens] = text[:, None] >= text
    if kind == "summary":
        seen[:tokens, :tokens] &= text // chunk >= first[:, None]
        seen[:tokens, tokens:] = summary < first[:, None]
    seen[tokens:, :tokens] = summary[:, None] == text // chunk
    seen[tokens:, tokens:] = torch.eye(len(summary), dtype=torch.bool)
    return seen


def expected_entries(tokens: int, window: int, chunk: int = CHUNK) -> int:
    """What the token after `tokens` others sees of them in a summary layer: window, own chunk, older summaries."""
    whole = tokens // chunk
    return min(whole, window) * chunk + tokens % chunk + max(0, whole - window)


def ksa_logits(
    model,
    parameters: Mapping[str, Tensor],
    ids: Sequence[int],
    window: int,
    kinds: Sequence[str],
    chunk: int = CHUNK,
    mix: float = 1.0,
) -> Tensor:
    """Logits of all text rows, (tokens, vocabulary)."""
    return ksa(model, parameters, ids, window, kinds, chunk, mix).logits


@torch.no_grad()
def ksa(
    model,
    parameters: Mapping[str, Tensor],
    ids: Sequence[int],
    window: int,
    kinds: Sequence[str],
    chunk: int = CHUNK,
    mix: float = 1.0,
) -> SummaryPass:
    """Logits, and the keys and values of the summaries."""
    n, body = len(ids), model.model
    chunks = n // chunk
    x = torch.cat((body.embed_tokens.weight[list(ids)], parameters["embedding"].float().expand(chunks, -1)))
    positions = torch.cat((torch.arange(n), torch.arange(1, chunks + 1) * chunk - 1))
    cosine, sine = body.rotary_emb(x[None], positions[None])
    keys, values = [], []
    for number, (block, kind) in enumerate(zip(body.layers, kinds, strict=True)):
        attention, y = block.self_attn, block.input_layernorm(x)
        q, k, v = (
            _projected(attention, name, y, n, parameters[f"layers.{number}.{name}"], mix)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = (_turned(part, cosine, sine) for part in (q, k))
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        x = x + attention.o_proj(_attended(q, k, v, visible(n, window, kind, chunk)))
        x = x + block.mlp(block.post_attention_layernorm(x))
        keys.append(k[:, n:])
        values.append(v[:, n:])
    return SummaryPass(model.lm_head(body.norm(x[:n])), keys, values)


def greedy(
    model,
    parameters: Mapping[str, Tensor],
    ids: Sequence[int],
    length: int,
    window: int,
    kinds: Sequence[str],
    chunk: int = CHUNK,
    mix: float = 1.0,
) -> list[int]:
    """The `length` tokens that greedy decoding adds; the whole text is computed anew for each of them."""
    text = list(ids)
    for _ in range(length):
        text.append(int(ksa_logits(model, parameters, text, window, kinds, chunk, mix)[-1].argmax()))
    return text[len(ids) :]


def _projected(attention, name: str, y: Tensor, n: int, own: Tensor, mix: float) -> Tensor:
    """(rows, heads, head_dim): text by the model, summaries by the mixture of both behind the norms."""
    base, norm = getattr(attention, name), getattr(attention, name.replace("proj", "norm"), lambda x: x)
    text, summary = (norm(x.unflatten(-1, (-1, attention.head_dim))) for x in (base(y), F.linear(y[n:], own.float())))
    return torch.cat((text[:n], mix * summary + (1 - mix) * text[n:]))


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """RoPE on (rows, heads, head_dim)."""
    first, second = x.chunk(2, -1)
    return x * cosine[0][:, None] + torch.cat((-second, first), -1) * sine[0][:, None]


def _attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """(heads, rows, head_dim) each to (rows, heads * head_dim); KV heads are shared by equal groups of query heads."""
    group = len(q) // len(k)
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

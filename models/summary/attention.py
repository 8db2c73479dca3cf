"""Attention with summaries for training: a window of text in blocks, and all summaries older than the window.

A block is as long as the window, so that each query's window lies in its own block and the one before it. Shapes:
queries ``(rows, heads, tokens, head_dim)``; keys and values the same with KV heads; summaries have chunks for tokens.
"""

from functools import lru_cache

import torch
from torch import Tensor


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, summaries: tuple[Tensor, Tensor] | None, window: int, chunk: int
) -> Tensor:
    """What text reads: ``window`` whole chunks, its own chunk, and the summaries of all chunks before these.

    ``summaries``: their keys and values; None leaves them out. ``tokens`` must be a multiple of ``window * chunk``.
    """
    rows, heads, tokens, channels = q.shape
    size, kv_heads = window * chunk, k.shape[1]
    if tokens % size:
        raise ValueError(f"tokens must be a multiple of the window's {size}, got {tokens}")
    group, blocks = heads // kv_heads, tokens // size
    q = (q * channels**-0.5).view(rows, kv_heads, group, blocks, size, channels).transpose(2, 3).flatten(3, 4)
    near = q @ _with_previous(k, size).transpose(-1, -2)
    near = near.unflatten(3, (group, size)) + _near_mask(blocks, window, chunk).to(q)[:, None]
    if summaries is None:
        return _back((near.softmax(-1).flatten(3, 4) @ _with_previous(v, size)), group)
    far = (q @ summaries[0][:, :, None].transpose(-1, -2)).unflatten(3, (group, size))
    far = far + _far_mask(blocks, window, chunk).to(q)[:, None]
    shares = torch.cat((near, far), -1).softmax(-1).flatten(3, 4)
    near_shares, far_shares = shares.split((2 * size, far.shape[-1]), -1)
    return _back(near_shares @ _with_previous(v, size) + far_shares @ summaries[1][:, :, None], group)


def chunk_attention(q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor) -> Tensor:
    """What summaries read: the text of their chunk, and themselves. ``q`` has one query for each chunk."""
    rows, heads, chunks, channels = q.shape
    kv_heads = k.shape[1]
    q = (q * channels**-0.5).view(rows, kv_heads, heads // kv_heads, chunks, channels).transpose(2, 3)
    keys, values = (
        torch.cat((text.unflatten(2, (chunks, -1)), own[:, :, :, None]), 3) for text, own in ((k, own_k), (v, own_v))
    )
    mixed = (q @ keys.transpose(-1, -2)).softmax(-1) @ values
    return mixed.transpose(2, 3).flatten(1, 2)


def _with_previous(x: Tensor, size: int) -> Tensor:
    """``(rows, heads, tokens, channels)`` to ``(rows, heads, blocks, 2 * size, channels)``; before the first: zeros."""
    x = x.unflatten(2, (-1, size))
    before = torch.cat((torch.zeros_like(x[:, :, :1]), x[:, :, :-1]), 2)
    return torch.cat((before, x), 3)


def _back(mixed: Tensor, group: int) -> Tensor:
    """``(rows, kv_heads, blocks, group * size, channels)`` to ``(rows, heads, tokens, channels)``."""
    return mixed.unflatten(3, (group, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


@lru_cache(maxsize=8)
def _near_mask(blocks: int, window: int, chunk: int) -> Tensor:
    """What is added to scores of the block before and the own one, ``(blocks, size, 2 * size)``."""
    size = window * chunk
    query, key = torch.arange(size)[:, None] + size, torch.arange(2 * size)
    seen = (key <= query) & (key // chunk >= query // chunk - window)
    seen = seen.repeat(blocks, 1, 1)
    seen[0, :, :size] = False
    return _added(seen)


@lru_cache(maxsize=8)
def _far_mask(blocks: int, window: int, chunk: int) -> Tensor:
    """What is added to scores of all summaries, ``(blocks, size, chunks)``."""
    chunks = torch.arange(blocks * window)
    own = chunks.repeat_interleave(chunk).view(blocks, -1, 1)
    return _added(chunks < own - window)


def _added(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))

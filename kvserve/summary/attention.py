"""Attention of text on the text of its own window and on the summaries before it, whatever else is at hand (KSA)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 64  # queries at a time


class Sight(NamedTuple):
    """What there is to see in one layer, keys or values: (H, m, D) float32 summaries of the first m chunks, text."""

    summaries: Tensor  # none if the request sees none
    text: Tensor  # (H, n, D) from the first chunk that is still cached as text


class Window(NamedTuple):
    """What each token may see: the text of its own chunk and of `chunks` before; summaries of those before these."""

    chunk: int  # tokens
    chunks: int

    def gone(self, position: int) -> int:
        """Chunks that have left the window of the token at `position`."""
        return max(0, position // self.chunk - self.chunks)


def attention(
    query: Tensor, position: int, keys: Sight, values: Sight, first: int, window: Window, scale: float
) -> Tensor:  # fmt: skip
    """Queries (count, Hq, D) of the tokens from `position` on -> (count, Hq, D) float32.

    first: the chunk with which the text begins; text in front of a window is there and is not looked at.
    """
    parts = []
    for start in range(position, position + len(query), TILE):
        end = min(start + TILE, position + len(query))
        low, high = window.gone(start), window.gone(end - 1)
        shown = slice((low - first) * window.chunk, end - first * window.chunk)
        seen = [torch.cat([sight.summaries[:, :high], sight.text[:, shown]], dim=1) for sight in (keys, values)]
        mask = _mask(start, end, min(high, keys.summaries.shape[1]), window, query.device)
        q = query[start - position : end - position].transpose(0, 1).to(seen[0].dtype)
        part = F.scaled_dot_product_attention(
            q[None], seen[0][None], seen[1][None], attn_mask=mask, scale=scale, enable_gqa=True
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def _mask(start: int, end: int, summaries: int, window: Window, device: torch.device) -> Tensor:
    """(end - start, summaries + text from the first one's window on) bool: what each token sees."""
    at = torch.arange(start, end, device=device)[:, None]
    gone = (at // window.chunk - window.chunks).clamp(min=0)
    text = torch.arange(window.gone(start) * window.chunk, end, device=device)
    before = torch.arange(summaries, device=device) < gone
    return torch.cat([before, (text >= gone * window.chunk) & (text <= at)], dim=1)

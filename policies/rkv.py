"""Of tokens that say the same, the newest is enough."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kvserve.policy import LayerView
from policies.snapkv import SnapKV

_TILE = 1 << 22  # similarities held at once


class RKV(SnapKV):
    """Score = mix * attention - (1 - mix) * redundancy, per KV head; the last `window` tokens stay.

    Attention: softmax, over the tokens before the window, of the highest logit in the group of query heads, mean
    over the window's queries, pooled along the sequence. Redundancy: softmax over all tokens of a key's mean cosine
    similarity with the others, where each key overlooks the newest of those that it resembles, so that the
    newest of equals is not penalised. (The release overlooks token 0 where a key resembles none; here no one.)
    """

    name: ClassVar[str] = "rkv"
    paper: ClassVar[str] = "arXiv:2505.24133"
    weights: ClassVar[bool] = False

    decode: bool = Field(True, description="Compact while generating too; if false, generated tokens stay")
    window: int = Field(8, ge=1, le=512, description="Last queries that vote; their tokens are kept")
    mix: float = Field(0.1, ge=0, le=1, description="Weight of attention; the rest is redundancy's (lambda)")
    similar: float = Field(0.5, ge=0, le=1, description="Keys with a higher cosine resemble each other")

    def scores(self, view: LayerView) -> Tensor:
        body = max(0, view.num_slots - self.window)
        votes = view.per_head(lambda logits, _: _attention(logits[:, :, :body]), last=self.window, softmax=False)
        copies = torch.stack([_redundancy(keys, self.similar) for keys in view.keys])
        scores = torch.full_like(copies, torch.inf)
        scores[:, :body] = self.mix * self._pooled(votes) - (1 - self.mix) * copies[:, :body]
        return scores


def _attention(logits: Tensor) -> Tensor:
    """(G, W, n) -> (n,)."""
    return torch.softmax(logits.amax(dim=0), dim=-1).mean(dim=0)


def _redundancy(keys: Tensor, similar: float) -> Tensor:
    """(n, D) -> (n,); the n x n similarities are computed some rows at a time, so memory stays at _TILE floats."""
    directions, slots = F.normalize(keys, dim=-1), torch.arange(len(keys), device=keys.device)
    sums = torch.zeros_like(keys[:, 0])
    for rows in slots.split(max(1, _TILE // len(keys))):
        cosines = directions[rows] @ directions.T
        cosines[rows - rows[0], rows] = 0
        newest = torch.where(cosines > similar, slots, -1).amax(dim=1)
        sums += cosines.masked_fill_((slots == newest[:, None]), 0).sum(dim=0)
    return torch.softmax(sums / len(keys), dim=0)

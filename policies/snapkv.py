"""The end of the prompt shows what of it matters."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, Queries, ScoringPolicy


class SnapKV(ScoringPolicy):
    """Keep what the last queries of the prompt attend to, smoothed over neighbours, per KV head.

    Score = attention of the last `window` queries, averaged over them and over the query heads of the
    KV head, then pooled along the sequence. As in the paper it acts on the prompt only (`decode` is off).
    Sinks are not protected by the paper; they survive by their scores.
    """

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "arXiv:2404.14469"
    weights: ClassVar[bool] = True

    decode: bool = Field(False, description="Compact while generating too, by the then last queries")
    sinks: int = Field(0, ge=0, le=1024, description="First tokens of the prompt, always kept")
    recent: int = Field(0, ge=0, le=4096, description="Newest tokens, always kept, if more than the window")
    window: int = Field(32, ge=1, le=512, description="Last queries that vote; their tokens are kept")
    kernel: int = Field(7, ge=1, le=63, description="Width of the pooling; odd")
    pooling: Literal["max", "avg"] = Field("max", description="Pooling along the sequence")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("must be odd")
        return kernel

    @property
    def protected(self) -> int:
        return self.sinks + max(self.window, self.recent)

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return Keys(), Queries(self.window)

    def scores(self, view: LayerView) -> Tensor:
        votes = view.per_head(lambda probs, _: probs.mean(dim=(0, 1)), last=self.window)
        body = self._pooled(votes[:, : view.num_slots - self.window])
        top = torch.full_like(votes[:, : votes.shape[1] - body.shape[1]], torch.inf)
        return torch.cat([body, top], dim=1)

    def _pooled(self, votes: Tensor) -> Tensor:
        if votes.shape[1] == 0:
            return votes
        pad = self.kernel // 2
        if self.pooling == "max":
            return F.max_pool1d(votes, self.kernel, stride=1, padding=pad)
        return F.avg_pool1d(votes, self.kernel, stride=1, padding=pad)

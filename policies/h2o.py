"""Tokens that have gathered attention will gather more."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, GathersMass, LayerView, Mass, ScoringPolicy


class H2O(GathersMass, ScoringPolicy):
    """Per KV head, keep the newest tokens and, of the others, those that attention has summed up on most.

    The sum is plain, over all queries of the prompt and of generated tokens, so old tokens are favoured; over
    the query heads of a KV head it is averaged (the paper has no GQA). The paper evicts one token per
    generated token; here a round every `slack` tokens drops as many at once. No sinks: they survive by their sums.
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "arXiv:2306.14048"
    reads: ClassVar[tuple[Evidence, ...]] = (Mass(observes="all"),)
    weights: ClassVar[bool] = True

    sinks: int = Field(0, ge=0, le=1024, description="First tokens of the prompt, always kept")
    recent: int = Field(1, ge=1, le=4096, description="Newest tokens, always kept, if more than their share")
    recent_share: float = Field(
        0.5, ge=0, le=1, description="Share of the kept tokens that are the newest ones; the rest are heavy hitters"
    )

    def scores(self, view: LayerView) -> Tensor:
        return view.mass.mean(dim=-1)

    def ranks(self, view: LayerView, keep: int) -> Tensor:
        newest = int(round(self.recent_share * keep, 6))
        split = self.model_copy(update={"recent": max(self.recent, newest)})
        return ScoringPolicy.ranks(split, view, keep)

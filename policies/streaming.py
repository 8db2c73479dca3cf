"""The third control: first tokens and last tokens."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kvserve.policy import LayerView, ScoringPolicy


class Streaming(ScoringPolicy):
    """Keep the first tokens (attention sinks) and the newest ones.

    As in StreamingLLM, but kept tokens stay at their original positions: the paper re-rotates keys so
    that positions are contiguous in the cache, which a paged engine with RoPE inside K does not.
    """

    name: ClassVar[str] = "streaming"
    paper: ClassVar[str] = "arXiv:2309.17453"
    recent: int = Field(1, ge=1, le=4096, description="Newest tokens that a budget must at least hold")

    def scores(self, view: LayerView) -> Tensor:
        return view.positions

"""What the newest token does not look at can go."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, Queries, ScoringPolicy


class TOVA(ScoringPolicy):
    """Keep the tokens that the last query attends to most, averaged over all heads of a layer.

    All KV heads of a layer keep the same tokens. The paper evicts one token per generated token; here a
    round every `slack` tokens drops as many at once, by the query of that moment.
    """

    name: ClassVar[str] = "tova"
    paper: ClassVar[str] = "arXiv:2401.06104"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(), Queries(1))
    weights: ClassVar[bool] = True
    per_head: ClassVar[bool] = False

    sinks: int = Field(0, ge=0, le=1024, description="First tokens of the prompt, always kept")
    recent: int = Field(1, ge=1, le=4096, description="Newest tokens, always kept")

    def scores(self, view: LayerView) -> Tensor:
        attention = view.per_head(lambda probs, _: probs.mean(dim=(0, 1)), last=1)
        return view.over_heads(attention).expand(view.num_heads, -1)

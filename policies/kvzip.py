"""A token is needed if the model looks at it when it repeats the text."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kvserve.policy import Evidence, LayerView, ScoringPolicy, SidePass


class KVzip(ScoringPolicy):
    """Keep the tokens that get the most attention from any query while the model repeats the prompt, per KV head.

    When the prompt is complete the model is asked to repeat it and is given it as its answer, chunk by chunk; nothing
    of that enters the cache. A slot's score is the highest attention over all these queries and the query heads of its
    KV head. It does not depend on what will be asked. The paper lets heads of all layers compete for one budget, here
    all have the same. Generated tokens are not repeated: with `decode` those that are not recent go first.
    """

    name: ClassVar[str] = "kvzip"
    paper: ClassVar[str] = "arXiv:2505.23416"
    reads: ClassVar[tuple[Evidence, ...]] = (SidePass(),)
    weights: ClassVar[bool] = True

    decode: bool = Field(False, description="Compact while generating too; what was generated goes first")
    recent: int = Field(1, ge=1, le=4096, description="Newest tokens, always kept")

    def scores(self, view: LayerView) -> Tensor:
        return view.repeated

"""Keys that look like the others are redundant."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, ScoringPolicy


class KeyDiff(ScoringPolicy):
    """Keep the tokens whose keys are least similar to the mean direction of all keys, per KV head.

    Score = -cos(key, anchor), anchor = mean of the L2-normalised keys; no attention, no queries. The paper
    evicts after every block of the prompt and protects nothing; here it acts when the prompt is complete
    (`prefill: "chunks"` acts between chunks), and sinks and recent tokens stay.
    """

    name: ClassVar[str] = "keydiff"
    paper: ClassVar[str] = "arXiv:2504.15364"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(),)

    def scores(self, view: LayerView) -> Tensor:
        directions = F.normalize(view.keys, dim=-1)
        anchor = directions.mean(dim=1, keepdim=True)
        return -F.cosine_similarity(view.keys, anchor, dim=-1)

"""Keys of small norm draw attention."""

from typing import ClassVar

from torch import Tensor

from kvserve.policy import Evidence, Keys, LayerView, ScoringPolicy


class KNorm(ScoringPolicy):
    """Keep the tokens whose keys have the smallest L2 norm, per KV head.

    RoPE keeps norms, so post-RoPE keys serve. Models that normalise keys (Qwen3's k_norm) flatten the
    signal: expect little there. The paper leaves the first two layers whole; here all layers are alike.
    """

    name: ClassVar[str] = "knorm"
    paper: ClassVar[str] = "arXiv:2406.11430"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(),)

    def scores(self, view: LayerView) -> Tensor:
        return -view.keys.norm(dim=-1)

"""Words are understood together: keep or drop neighbouring tokens as one."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kvserve.policy import LayerView, WrappingPolicy
from kvserve.policy.wrapping import Wrapped


class ChunkKV(WrappingPolicy):
    """Keep whole chunks of `chunk` tokens, those with the highest mean rank by another policy.

    Chunks begin at multiples of `chunk` in the text. Tokens that are protected do not count for their chunk's mean.
    Exactly the budget stays: of the last chunk that fits only in part, the newest tokens. By default SnapKV without
    pooling ranks, as in the paper. Its reuse of one layer's choice in the next ones is left out: it saves time only.
    """

    name: ClassVar[str] = "chunkkv"
    paper: ClassVar[str] = "arXiv:2502.00299"

    of: Wrapped = Field(
        {"name": "snapkv", "kernel": 1},  # type: ignore[arg-type]
        validate_default=True,
        description="The policy that ranks tokens: its name, or an object",
    )
    chunk: int = Field(10, ge=2, le=1024, description="Tokens of a chunk")
    heads: bool = Field(True, description="KV heads choose for themselves; false: by the mean of their ranks (kvpress)")

    def reranked(self, ranks: Tensor, view: LayerView, keep: int) -> Tensor:
        if not self.heads:
            ranks = view.over_heads(ranks).expand_as(ranks)
        size, chunks = self.chunk, view.positions // self.chunk
        places = ranks.new_zeros(len(ranks), (int(chunks.max()) + 1) * size)  # one for each position in the text
        counts, known = (
            places.scatter(1, view.positions, x).unflatten(1, (-1, size)).sum(dim=-1)
            for x in (ranks.isfinite().to(ranks.dtype), ranks.where(ranks.isfinite(), 0.0))
        )
        return (known / counts.clamp(min=1)).gather(1, chunks)

"""What a policy sees of one layer of one request, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor


@dataclass
class LayerView:
    """One layer of one request at the moment of a compaction. Slots are in order of age, oldest first.

    Shapes: H local KV heads, G query heads per KV head, n slots held, D head size, W captured queries.
    Keys and queries are post-RoPE. `load` reads the "keys" or the "values", (H, n, D) float32, on first use.
    """

    layer: int
    num_layers: int
    logical: int  # tokens of the request seen so far
    since: int  # `logical` at this layer's previous compaction, 0 if none
    positions: Tensor  # (H, n) int64: logical position of the token in each slot
    load: Callable[[Literal["keys", "values"]], Tensor]
    scale: float = 1.0
    head_offset: int = 0  # index of the first local KV head in the whole model (tensor parallelism)
    queries: Tensor | None = None  # (W, H * G, D) float32, oldest first
    query_positions: Tensor | None = None  # (W,) int64
    state: dict[str, Tensor] = field(default_factory=dict)  # (H, n, ...): carried through compactions

    @property
    def num_heads(self) -> int:
        return self.positions.shape[0]

    @property
    def num_slots(self) -> int:
        return self.positions.shape[1]

    @cached_property
    def keys(self) -> Tensor:
        """(H, n, D) float32."""
        return self.load("keys")

    @cached_property
    def values(self) -> Tensor:
        """(H, n, D) float32."""
        return self.load("values")

    def per_head(self, reduce: Callable[[Tensor, Tensor], Tensor], last: int | None = None) -> Tensor:
        """Stack `reduce(probs, seen)` over the KV heads.

        probs: (G, W, n) float32, the causal softmax attention of the last `last` captured queries (all
        if None) on the slots held now; seen: (W,) int64, how many slots each query could see: the first
        ones, since slots are in order of age. Head by head, so that memory stays at G * W * n floats.
        """
        queries, at = self._recent_queries(last)
        group = queries.shape[1] // self.num_heads
        results = []
        for head in range(self.num_heads):
            seen = torch.searchsorted(self.positions[head].contiguous(), at, right=True)
            q = queries[:, head * group : (head + 1) * group].transpose(0, 1) * self.scale
            logits = q @ self.keys[head].T
            young, unseen = unseen_slots(seen, self.num_slots)
            logits[:, :, young:].masked_fill_(unseen, float("-inf"))
            results.append(reduce(torch.softmax(logits, dim=-1), seen))
        return torch.stack(results)

    def _recent_queries(self, last: int | None) -> tuple[Tensor, Tensor]:
        if self.queries is None or self.query_positions is None:
            raise RuntimeError("this policy reads queries but does not declare query_window")
        start = 0 if last is None else max(0, len(self.queries) - last)
        return self.queries[start:], self.query_positions[start:]


def unseen_slots(seen: Tensor, slots: int) -> tuple[int, Tensor]:
    """First slot that some query could not see, and (W, slots - first) bool: which ones it could not."""
    first = min(int(seen[0]), slots) if len(seen) else slots  # queries are in order of age, too
    return first, torch.arange(first, slots, device=seen.device) >= seen[:, None]

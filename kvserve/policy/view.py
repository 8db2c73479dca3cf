"""What a policy sees of one layer of one request, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kvserve.policy.rope import Rope
from kvserve.policy.softmax import Softmax


class Moments(NamedTuple):
    """Sums over the pre-RoPE queries of a request, per query head: of each query, and of its outer product."""

    count: int  # type: ignore[assignment]
    total: Tensor  # (H * G, D) float32
    outer: Tensor  # (H * G, D, D) float32


@dataclass
class LayerView:
    """One layer of one request at the moment of a compaction. Slots are in order of age, oldest first.

    Shapes: H local KV heads, G query heads per KV head, n slots held, D head size, W captured queries.
    Keys and queries are post-RoPE. `load` reads the "keys" or the "values", (H, n, D) float32, on first use.
    `mass` and `moments` are there if the policy names them in `reads`; see `Policy.gathers`.
    """

    layer: int
    num_layers: int
    logical: int  # tokens of the request seen so far
    since: int  # `logical` at this layer's previous compaction, 0 if none
    positions: Tensor  # (H, n) int64: logical position of the token in each slot
    load: Callable[[Literal["keys", "values"]], Tensor]
    softmax: Softmax = field(default_factory=Softmax)  # how products of queries and keys become attention
    head_offset: int = 0  # index of the first local KV head in the whole model (tensor parallelism)
    queries: Tensor | None = None  # (W, H * G, D) float32, oldest first
    query_positions: Tensor | None = None  # (W,) int64
    state: dict[str, Tensor] = field(default_factory=dict)  # (H, n, ...): carried through compactions
    memo: dict[str, Any] = field(default_factory=dict)  # what the policy notes about this layer; kept as it is
    prompt: int = 0  # tokens of the request's prompt
    mass: Tensor | None = None  # (H, n, G) float32: attention that each slot got, summed over the queries seen
    moments: Moments | None = None
    repeated: Tensor | None = None  # (H, n) float32: the most attention that each slot got as the prompt was repeated
    rope: Rope | None = None  # how queries and keys of this layer were rotated
    calibration: dict[str, Tensor] | None = None  # this layer's statistics of local heads; see evidence.calibration
    summaries: Callable[[int, int], tuple[Tensor, Tensor]] | None = None  # of chunks [a, b): keys, values (H, b - a, D)
    mean_over_workers: Callable[[Tensor], Tensor] = lambda x: x  # under tensor parallelism

    @property
    def scale(self) -> float:
        return self.softmax.scale

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

    def forget(self) -> None:
        """Give back the memory of keys and values; they are read again when asked for."""
        self.__dict__.pop("keys", None)
        self.__dict__.pop("values", None)

    def over_heads(self, values: Tensor) -> Tensor:
        """(H, ...) -> (...): the mean over all KV heads of the layer, those of other workers included."""
        return self.mean_over_workers(values.mean(dim=0))

    def per_head(
        self, reduce: Callable[[Tensor, Tensor], Tensor], last: int | None = None, *, softmax: bool = True
    ) -> Tensor:
        """Stack `reduce(probs, seen)` over the KV heads.

        probs: (G, W, n) float32, the causal attention of the last `last` captured queries (all if None) on
        the slots held now, as the model computes it, or the logits, -inf where unseen, if not `softmax`; seen: (W,)
        int64, how many slots each query could see: the first ones, since slots are in order of age.
        Head by head, so that memory stays at G * W * n floats.
        """
        queries, at = self._recent_queries(last)
        group = queries.shape[1] // self.num_heads
        results = []
        for head in range(self.num_heads):
            seen = torch.searchsorted(self.positions[head].contiguous(), at, right=True)
            heads = slice(head * group, (head + 1) * group)
            logits = self.softmax.logits(queries[:, heads].transpose(0, 1) @ self.keys[head].T)
            young, unseen = unseen_slots(seen, self.num_slots)
            logits[:, :, young:].masked_fill_(unseen, float("-inf"))
            results.append(reduce(self.softmax.probabilities(logits, heads) if softmax else logits, seen))
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

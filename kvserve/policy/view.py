"""What a policy sees of one layer of one request, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from kvserve.policy.evidence import (
    Calibrated,
    Evidence,
    Mass,
    Moments,
    OutputWeight,
    Queries,
    Rotation,
    SidePass,
    SummaryTokens,
)
from kvserve.policy.rope import Rope
from kvserve.policy.softmax import Softmax

T = TypeVar("T")


class Given(Generic[T]):
    """A member that a view has if the policy declares this kind of evidence; without it, reading it raises."""

    def __init__(self, kind: type[Evidence]) -> None:
        self._kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, view: None, owner: type) -> None: ...
    @overload
    def __get__(self, view: "LayerView", owner: type) -> T: ...
    def __get__(self, view: "LayerView | None", owner: type) -> T | None:
        if view is None:  # the default of the dataclass's field
            return None
        found: T | None = vars(view).get(self._name)
        if found is not None:
            return found
        kind = self._kind.__name__
        if any(isinstance(one, self._kind) for one in view.evidence):
            raise RuntimeError(f"view.{self._name} is not known yet in layer {view.layer}, though {kind} is declared")
        raise RuntimeError(
            f"the policy reads view.{self._name} and does not declare {kind}: add it to `reads`, or to `evidence` if "
            f"it depends on parameters; declared: {', '.join(map(repr, view.evidence)) or 'nothing'}"
        )

    def __set__(self, view: "LayerView", value: T | None) -> None:
        vars(view)[self._name] = value


class QuerySums(NamedTuple):
    """Sums over the pre-RoPE queries of a request, per query head: of each query, and of its outer product."""

    count: int  # type: ignore[assignment]
    total: Tensor  # (H * G, D) float32
    outer: Tensor  # (H * G, D, D) float32


@dataclass(repr=False, eq=False)
class LayerView:
    """One layer of one request at the moment of a compaction. Slots are in order of age, oldest first.

    Shapes: H local KV heads, G query heads per KV head, n slots held, D head size, W captured queries.
    Keys and queries are post-RoPE. `load` reads the "keys" or the "values", (H, n, D) float32, on first use.
    What is `Given` is there if the policy declares it; see `kvserve.policy.evidence`.
    """

    layer: int
    num_layers: int
    logical: int  # tokens of the request seen so far
    since: int  # `logical` at this layer's previous compaction, 0 if none
    positions: Tensor  # (H, n) int64: logical position of the token in each slot
    load: Callable[[Literal["keys", "values"]], Tensor]
    softmax: Softmax = field(default_factory=Softmax)  # how products of queries and keys become attention
    head_offset: int = 0  # index of the first local KV head in the whole model (tensor parallelism)
    prompt: int = 0  # tokens of the request's prompt
    state: dict[str, Tensor] = field(default_factory=dict)  # (H, n, ...): carried through compactions
    memo: dict[str, Any] = field(default_factory=dict)  # what the policy notes about this layer; kept as it is
    evidence: tuple[Evidence, ...] = ()  # that the policy declares
    queries: Given[Tensor] = Given(Queries)  # (W, H * G, D) float32, oldest first
    query_positions: Given[Tensor] = Given(Queries)  # (W,) int64
    mass: Given[Tensor] = Given(Mass)  # (H, n, G) float32: attention that each slot got, summed over the queries seen
    moments: Given[QuerySums] = Given(Moments)
    repeated: Given[Tensor] = Given(SidePass)  # (H, n) float32: the most attention that each slot got then
    rope: Given[Rope] = Given(Rotation)  # how queries and keys of this layer were rotated
    calibration: Given[dict[str, Tensor]] = Given(Calibrated)  # statistics of local heads; see evidence.calibration
    output_weight: Given[Callable[[], Tensor]] = Given(OutputWeight)  # () -> (H, G, D, hidden) float32
    summaries: Given[Callable[[int, int], tuple[Tensor, Tensor]]] = Given(SummaryTokens)
    """Of chunks [a, b): keys and values (H, b - a, D)."""
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
        start = 0 if last is None else max(0, len(self.queries) - last)
        return self.queries[start:], self.query_positions[start:]


def unseen_slots(seen: Tensor, slots: int) -> tuple[int, Tensor]:
    """First slot that some query could not see, and (W, slots - first) bool: which ones it could not."""
    first = min(int(seen[0]), slots) if len(seen) else slots  # queries are in order of age, too
    return first, torch.arange(first, slots, device=seen.device) >= seen[:, None]

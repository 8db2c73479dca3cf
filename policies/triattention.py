"""Queries before RoPE cluster around a centre: score keys by that centre at the distances to come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kvserve.policy import (
    Calibrated,
    Evidence,
    Facts,
    Keys,
    LayerView,
    Merged,
    Policy,
    PolicyError,
    Rotation,
    top_slots,
)


class TriAttention(Policy):
    """Keep the keys that a typical query, seen from the distances to come, would attend to most.

    S = mean over offsets of the sum over bands f of |E q_f| |k_f| cos(w_f (t - p + offset) + phase_f), plus the sum
    of (E|q_f| - |E q_f|) |k_f|, the part of the queries that has no direction. Cached keys have been rotated by
    w_f p, so p cancels and one complex number per band and query head is left. Query statistics come from the
    calibration file. S is z-scored per query head over the slots that may go; a KV head's votes are the highest
    over its query heads.

    With `protect_prompt` the budget counts generated tokens only: the prompt stays, and beside it `budget` tokens,
    or that fraction of the generated ones. Channels that RoPE leaves alone (partial rotary embedding) are not
    calibrated and do not count. Without a recent window, as in the paper, new tokens must earn their place.
    """

    name: ClassVar[str] = "triattention"
    paper: ClassVar[str] = "arXiv:2604.04921"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(), Calibrated(), Rotation())

    budget: int | float = Field(
        0.5,
        description="Tokens kept per layer: a whole number >= 1, or a fraction in (0, 1] of the tokens seen; with "
        "protect_prompt of the generated tokens only, and the prompt is kept beside them",
    )
    mode: Literal["per_head", "per_layer_per_head", "union"] = Field(
        "per_head",
        description="Who keeps the same slots: a KV head's index in all layers (by the mean of their votes), nobody, "
        "or all heads of all layers (by the highest vote)",
    )
    protect_prompt: bool = Field(True, description="Always keep the prompt, beside the budget")
    recent: int = Field(0, ge=0, le=4096, description="Newest tokens, always kept")
    aggregate: Literal["mean", "max"] = Field("mean", description="Over the offsets")
    offsets: int = Field(17, ge=1, le=17, description="Distances to come: 2^0, 2^1, ... this many")
    trig: bool = Field(True, description="Score by the queries' centre (ablation: false)")
    norm: bool = Field(True, description="Score by norms, too (ablation: false)")
    concentration: bool = Field(True, description="Norms count by what of the queries has no direction, else fully")

    @model_validator(mode="after")
    def _scores_something(self) -> "TriAttention":
        if not (self.trig or self.norm):
            raise PolicyError(
                "kv_policy.trig and kv_policy.norm are both false; one must be true", param="kv_policy.trig"
            )
        return self

    @property
    def protected(self) -> int:
        return self.recent

    @property
    def across_layers(self) -> bool:
        return self.mode != "per_layer_per_head"

    def check(self, facts: Facts) -> None:
        if facts.pipeline_parallel > 1 and self.across_layers:
            raise PolicyError(
                f"kv_policy {self.name!r} with mode {self.mode!r} counts votes of all layers, but this server has them "
                f"on {facts.pipeline_parallel} pipeline stages; send mode 'per_layer_per_head', or start the server "
                "with pipeline parallelism 1",
                param="kv_policy.mode",
                reason="unsupported",
            )
        super().check(facts)
        problem = None
        if facts.unrotated:
            problem = (
                f"ranks keys by how they turn with distance (RoPE), but {facts.unrotated} of this model's "
                f"{facts.num_layers} compressible layers do not turn them"
            )
        elif "queries" not in facts.calibrated:
            problem = (
                "needs statistics of the model's queries; start the server with --kv-calibration FILE, "
                "made by `kvserve calibrate MODEL -o FILE`"
            )
        elif self.mode == "union" and facts.tensor_parallel > 1:
            problem = "with mode 'union' needs all KV heads in one worker; start the server with tensor parallelism 1"
        if problem:
            raise PolicyError(f"kv_policy {self.name!r} {problem}", param="kv_policy.name", reason="unsupported")

    def target(self, logical: int, prompt: int = 0) -> int:
        if not self.protect_prompt:
            return super().target(logical, prompt)
        return min(logical, prompt) + super().target(max(0, logical - prompt))

    def choose(self, views: Sequence[LayerView], keeps: Sequence[int]) -> Iterator[Tensor | Merged]:
        """Layers are read one by one; in a mode that shares slots all of them vote before the first one moves."""
        if self.mode == "per_layer_per_head":
            yield from super().choose(views, keeps)
            return
        ballots: list[_Ballot] = []
        belongs = []
        for view in views:
            # One for all layers, unless a compaction of some of them once had to wait for free blocks.
            ballot = next((b for b in ballots if torch.equal(b.positions, view.positions)), None)
            if ballot is None:
                ballots.append(ballot := _Ballot(view.positions))
            belongs.append(ballot.add(self.votes(view), self.mode))
            view.forget()
        for ballot, keep in zip(belongs, keeps, strict=True):
            assert ballot.votes is not None
            yield top_slots(ballot.votes, keep)

    def select(self, view: LayerView, keep: int) -> Tensor:
        """One layer by itself."""
        return top_slots(self.votes(view), keep)

    def votes(self, view: LayerView) -> Tensor:
        """(H, n) float32: the highest z-score over a KV head's query heads, infinite where protected."""
        first = min(view.prompt, view.num_slots) if self.protect_prompt else 0
        free = slice(first, max(first, view.num_slots - self.recent))
        scores = self.scores(view, free)
        spread = scores.std(dim=-1, keepdim=True, correction=0).clamp(min=1e-6)
        votes = scores.new_full((view.num_heads, view.num_slots), torch.inf)
        votes[:, free] = ((scores - scores.mean(dim=-1, keepdim=True)) / spread).amax(dim=1)
        return votes

    def scores(self, view: LayerView, free: slice) -> Tensor:
        """(H, G, m) float32: S of these m slots for each query head."""
        keys = view.keys[:, free, : view.rope.rotated]
        centre = view.calibration["q_mean"].view(view.num_heads, -1, len(view.rope.inv_freq))
        scores = self._trig(view, centre, keys) if self.trig else keys.new_zeros(())
        if self.norm:
            length = view.calibration["q_abs"].view(centre.shape)
            weight = length - centre.abs() if self.concentration else length
            scores = scores + weight @ view.rope.bands(keys).abs().mT
        return scores / view.rope.factor

    def _trig(self, view: LayerView, centre: Tensor, keys: Tensor) -> Tensor:
        """(H, G, m): Re sum_f E[q_f] e^(i w_f (t + offset)) conj(key_f): a dot product of channels."""
        turns = view.rope.phases(view.logical + 2 ** torch.arange(self.offsets, device=keys.device))
        if self.aggregate == "mean":
            turns = turns.mean(dim=0, keepdim=True)
        queries = (view.rope.channels(centre * turn, centre.real) for turn in turns)
        return reduce(torch.maximum, (query @ keys.mT for query in queries))


@dataclass
class _Ballot:
    """What layers that hold the same tokens have voted together."""

    positions: Tensor  # (H, n)
    votes: Tensor | None = None  # (H, n): sum over layers, or the highest of all layers and heads

    def add(self, votes: Tensor, mode: str) -> "_Ballot":
        if mode == "union":  # the k best of the union of every head's k best are the k best by the highest vote
            votes = votes.amax(dim=0, keepdim=True).expand_as(votes)
        if self.votes is not None:
            votes = torch.maximum(self.votes, votes) if mode == "union" else self.votes + votes
        self.votes = votes
        return self

"""The policy contract: the page to read first when writing a compression method.

A policy is a small frozen class whose fields are its request parameters. One declaration gives
validation, JSON schema, CLI help and docs:

    class Norm(ScoringPolicy):
        \"\"\"Keep the tokens with the smallest keys.\"\"\"
        name = "norm"
        def scores(self, view):                      # (H, n), higher = keep
            return -view.keys.norm(dim=-1)

The scheduler asks *when* and *how many* (`due`, plain integers); every worker asks *which* (`select`,
tensors of its own KV heads). A policy never sees blocks, batches or other requests.
"""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from kvserve.errors import PolicyError
from kvserve.view import LayerView, unseen_slots

__all__ = ["Facts", "LayerView", "Moment", "Policy", "PolicyError", "ScoringPolicy", "top_slots", "unseen_slots"]


class Facts(NamedTuple):
    """What this server is: what `Policy.check` may refuse a request for."""

    num_layers: int
    groups: int  # layer groups with block tables of their own
    block_size: int
    pool_tokens: int  # tokens that an otherwise empty pool can hold for one request
    max_model_len: int
    chunk: int  # largest prefill chunk, tokens
    tensor_parallel: int = 1  # workers among which the KV heads of a layer are split


class Moment(NamedTuple):
    """Where a request stands, in tokens, when the scheduler asks whether a compaction is due."""

    logical: int  # tokens seen
    physical: int  # tokens kept
    stage: Literal["prefill", "prefilled", "decode"]  # between chunks, prompt just done, generating


class Policy(BaseModel):
    """Base of all policies: the parameters that all of them have, and when a compaction is due."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ()  # of "keys", "values", "queries": shown to users
    compresses: ClassVar[bool] = True
    per_head: ClassVar[bool] = True  # whether the KV heads of a layer choose for themselves

    budget: int | float = Field(
        0.5,
        description="Tokens kept per layer: a whole number >= 1, or a fraction in (0, 1] of the tokens seen",
    )
    when: Literal["always", "pressure"] = Field(
        "always",
        description="'always', or 'pressure': only when the pool would otherwise run out of blocks and preempt "
        "a request; then what is kept depends on load",
    )
    prefill: Literal["whole", "chunks"] = Field(
        "whole",
        description="Compact once when the prompt is complete, or also between its chunks, which needs "
        "less memory but depends on chunk boundaries. A prompt larger than the pool is always chunked",
    )
    decode: bool = Field(True, description="Compact while generating too; if false, generated tokens stay")
    slack: int = Field(
        128,
        ge=16,
        le=4096,
        description="While generating, compact at logical lengths that are multiples of this; the cache "
        "grows by at most this much over the budget in between",
    )

    @model_validator(mode="after")
    def _budget_in_range(self) -> "Policy":
        low, high = (0, 1) if isinstance(self.budget, float) else (0, math.inf)
        if not low < self.budget <= high:
            raise PolicyError(
                f"kv_policy.budget is {self.budget!r}; allowed: a whole number >= 1 (tokens kept per layer) "
                "or a fraction in (0, 1] (share of the tokens seen)",
                param="kv_policy.budget",
            )
        if isinstance(self.budget, int) and self.budget < self.protected + 1:
            raise PolicyError(
                f"kv_policy.budget is {self.budget}, but {self.name!r} with these parameters protects "
                f"{self.protected} tokens; allowed: at least {self.protected + 1}",
                param="kv_policy.budget",
            )
        return self

    # -- what the policy is ------------------------------------------------------------------------

    @property
    def protected(self) -> int:
        """Tokens that are kept whatever the scores say."""
        return 0

    @property
    def query_window(self) -> int:
        """How many of the last queries the engine must capture for `select`; 0 = none."""
        return 0

    def check(self, facts: Facts) -> None:
        """Raise PolicyError if this server cannot serve these parameters."""

    # -- when, and how many (scheduler; plain integers) ---------------------------------------------

    def target(self, logical: int) -> int:
        """Tokens kept per layer (mean over layers) when `logical` have been seen; fractions round up."""
        if isinstance(self.budget, int):
            return self.budget
        return max(math.ceil(round(self.budget * logical, 6)), min(self.protected + 1, logical))

    def due(self, at: Moment) -> int | None:
        """Tokens to keep if a compaction is due at this moment, else None. Must not depend on load."""
        target = self.target(at.logical)
        over = at.physical - target
        if over <= 0:
            return None
        if at.stage == "prefill":
            return target if over > self.slack else None
        if at.stage == "decode" and not (self.decode and at.logical % self.slack == 0):
            return None
        return target

    def shares(self, keep: int, num_layers: int, held: int) -> list[int] | None:
        """Tokens kept by each layer if their mean is `keep` of now `held`; None = the same in all."""
        return None

    def overshoot(self) -> int:
        """Tokens that may gather over the target between two compactions while generating."""
        return self.slack

    def chunked_peak(self, prompt: int, chunk: int) -> int:
        """Largest number of tokens held while a prompt is compacted between its chunks."""
        return min(prompt, self.target(prompt) + self.slack + chunk)

    def peak(self, prompt: int, generate: int, chunk: int, whole: bool) -> int:
        """Largest number of tokens held at once over the life of a request, for admission."""
        total = prompt + generate
        prefill = prompt if whole else self.chunked_peak(prompt, chunk)
        grown = self.target(total) + self.overshoot() if self.decode else self.target(prompt) + generate
        return min(total, max(prefill, grown + 1))

    # -- which (workers; tensors) --------------------------------------------------------------------

    def select(self, view: LayerView, keep: int) -> Tensor:
        """Slots that stay: (H, keep) int64, each row ascending and without repeats."""
        raise NotImplementedError

    # -- wire ----------------------------------------------------------------------------------------

    def wire(self) -> dict[str, Any]:
        """Flat values that `kvserve.request.parse` turns into an equal policy."""
        return {"name": self.name, **self.model_dump()}


class ScoringPolicy(Policy):
    """A policy that ranks the slots of each KV head; sinks and recent tokens are always kept."""

    sinks: int = Field(4, ge=0, le=1024, description="First tokens of the prompt, always kept")
    recent: int = Field(32, ge=1, le=4096, description="Newest tokens, always kept")

    @property
    def protected(self) -> int:
        return self.sinks + self.recent

    def scores(self, view: LayerView) -> Tensor:
        """(H, n), higher = keep."""
        raise NotImplementedError

    def select(self, view: LayerView, keep: int) -> Tensor:
        scores = self.scores(view).to(torch.float32).clone()
        recent = min(self.recent, keep)
        scores[:, view.num_slots - recent :] = math.inf
        scores[view.positions < min(self.sinks, keep - recent)] = math.inf
        return top_slots(scores, keep)


def top_slots(scores: Tensor, keep: int) -> Tensor:
    """(H, n) scores -> (H, keep) slots with the highest ones, ascending; of equals the newer slot wins."""
    n = scores.shape[1]
    order = torch.sort(scores.flip(1), dim=1, descending=True, stable=True).indices[:, :keep]
    return (n - 1 - order).sort(dim=1).values

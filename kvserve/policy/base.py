"""What every policy has: its parameters, when a compaction is due, and to how many tokens.

Read `kvserve.policy` first.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from kvserve.policy.errors import PolicyError
from kvserve.policy.types import Facts, Merged, Moment
from kvserve.policy.view import LayerView

MOST = 2**31 - 1
"""Tokens that a budget may be: more than any model reads, and small enough for every wire that the number goes over."""
EVERYTHING = MOST
"""What `shares` says of a layer that is left as it is."""


class Policy(BaseModel):
    """Base of all policies: the parameters that all of them have, and when a compaction is due."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ()
    """Its evidence, of keys, values, queries, mass, moments, rope, calibration, summaries."""
    observes: ClassVar[Literal["prompt", "all"]] = "prompt"  # whose queries add to mass and moments
    compresses: ClassVar[bool] = True
    per_head: ClassVar[bool] = True  # whether the KV heads of a layer choose for themselves
    budgeted: ClassVar[bool] = True  # whether exactly as many tokens stay as a request asks for

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
    at: int | None = Field(
        None,
        ge=1,
        description="Compact the prompt once this many of its tokens have been read, before the next one is; the rest "
        "is read as if it had been generated. Null: once all of it has been read",
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
        if self.budget is None:  # a policy that says so in its field
            return self
        low, high = (0, 1) if isinstance(self.budget, float) else (0, MOST)
        if not low < self.budget <= high:
            raise PolicyError(
                f"kv_policy.budget is {self.budget!r}; allowed: a whole number >= 1 (tokens kept per layer, "
                f"at most {MOST}) or a fraction in (0, 1] (share of the tokens seen)",
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

    @property
    def gathers(self) -> tuple[str, ...]:
        """Evidence summed over all queries of the prompt, and while generating if it `observes` "all".

        Such a request computes its whole prompt: a prefix-cache hit would skip queries.
        """
        return tuple(name for name in ("mass", "moments") if name in self.reads)

    @property
    def text_window(self) -> int | None:
        """Chunks before a token's own whose text it sees, older ones as summaries; None: it reads no summaries."""
        return None

    @property
    def summarised(self) -> bool:
        """Whether a summary takes the place of text that leaves the window; else nothing does."""
        return True

    @property
    def mass_every(self) -> int:
        """Only each n-th query of the prompt adds to the mass, n times: an estimate at an n-th of the cost."""
        return 1

    @property
    def own_shares(self) -> bool:
        """Whether `own_shares_of` divides the budget among the layers by this request's own evidence."""
        return False

    @property
    def salt(self) -> str | None:
        """What the keys of a prompt depend on beside model and tokens: requests that differ share no prefix."""
        return None

    def check(self, facts: Facts) -> None:
        """Raise PolicyError if this server cannot serve these parameters. Whoever overrides it calls this one too."""
        problem = None
        if self.compresses and not facts.num_layers:
            problem = "has nothing to compress: no layer of this model has full attention; send 'full'"
        elif "repeated" in self.reads and facts.side_pass_problem is not None:
            problem = f"has the model repeat the prompt, which cannot be done here: {facts.side_pass_problem}"
        elif "rope" in self.reads and facts.rope_problem is not None:
            problem = f"undoes the rotation of queries or keys (RoPE), but {facts.rope_problem}"
        if problem:
            raise PolicyError(f"kv_policy {self.name!r} {problem}", param="kv_policy.name", reason="unsupported")

    def bundled(self, facts: Facts) -> bool:
        """Whether layers that share block tables on this server get the mean of what each of them was to get."""
        return False

    def settled(self, facts: Facts) -> "Policy":
        """This policy, knowing the server that it has passed `check` for."""
        return self

    def for_prompt(self, tokens: int) -> "Policy":
        """This policy, `settled`, knowing too how many tokens the prompt of its request has."""
        return self

    # -- when, and how many (scheduler; plain integers) ---------------------------------------------

    def prompt_of(self, tokens: int) -> int:
        """How many of a prompt's tokens count as prompt: those up to `at`."""
        return tokens if self.at is None else min(self.at, tokens)

    def target(self, logical: int, prompt: int = 0) -> int:
        """Tokens kept per layer (mean over layers) when `logical` have been seen; fractions round up.

        prompt: how many of them were the prompt, for policies that count it apart.
        """
        if isinstance(self.budget, int):
            return self.budget
        return max(math.ceil(round(self.budget * logical, 6)), min(self.protected + 1, logical))

    def due(self, at: Moment) -> int | None:
        """Tokens to keep if a compaction is due at this moment, else None. Must not depend on load."""
        target = self.target(at.logical, at.prompt)
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
        return min(prompt, self.target(prompt, prompt) + self.slack + chunk)

    def peak(self, prompt: int, generate: int, chunk: int, whole: bool) -> int:
        """Largest number of tokens held at once over the life of a request, for admission."""
        total = prompt + generate
        prefill = prompt if whole else self.chunked_peak(prompt, chunk)
        decoding = self.target(total, prompt) + self.overshoot()
        grown = decoding if self.decode else self.target(prompt, prompt) + generate
        return min(total, max(prefill, grown + 1))

    # -- which (workers; tensors) --------------------------------------------------------------------

    def select(self, view: LayerView, keep: int) -> Tensor | Merged:
        """Slots that stay: (H, keep) int64, each row ascending and without repeats."""
        raise NotImplementedError

    def choose(self, views: Sequence[LayerView], keeps: Sequence[int]) -> Iterator[Tensor | Merged]:
        """`select` for all layers of a plan, in their order; override it where layers decide together."""
        return (self.select(view, keep) for view, keep in zip(views, keeps, strict=True))

    def own_shares_of(self, views: Sequence[LayerView], keep: int) -> list[float]:
        """Tokens that each layer keeps when the prompt is complete, their mean being `keep`."""
        raise NotImplementedError

    # -- wire ----------------------------------------------------------------------------------------

    def wire(self) -> dict[str, Any]:
        """Flat values that `kvserve.policy.request.parse` turns into an equal policy."""
        return {"name": self.name, **self.model_dump()}

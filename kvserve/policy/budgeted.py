"""When a policy acts, and how many tokens stay: parameters that all policies have, and plain integers."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, Field, field_validator, model_validator

from kvserve.policy.errors import PolicyError
from kvserve.policy.types import Facts, Moment
from kvserve.policy.view import LayerView

MOST = 2**31 - 1
"""Tokens that a budget may be: more than any model reads, and small enough for every wire that the number goes over."""
NEVER = MOST
Place = Literal["last_message", "system"]
"""Places of a chat that a server finds the token positions of."""
EVERYTHING = MOST
"""What `shares` says of a layer that is left as it is."""


class Budgeted(BaseModel):
    """The scheduler asks for this half of a policy; only `own_shares_of` sees tensors."""

    name: ClassVar[str]
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
    at: Annotated[int, Field(ge=1)] | Place | None = Field(
        None,
        description="Compact the prompt once this many of its tokens have been read, before the next one is; the rest "
        "is read as if it had been generated. In a chat also 'last_message' (all that stands before it) or 'system' "
        "(system message and tools). Null: once all of it has been read",
    )
    share: bool = Field(
        False,
        description="Keep the prompt up to `at` compressed, for later requests that begin with the same tokens and "
        "name the same policy: they start from it without reading it",
    )
    decode: bool = Field(True, description="Compact while generating too; if false, generated tokens stay")
    slack: int = Field(
        128,
        ge=16,
        le=4096,
        description="While generating, compact at logical lengths that are multiples of this; the cache "
        "grows by at most this much over the budget in between",
    )

    @field_validator("at", mode="before")
    @classmethod
    def _known_place(cls, at: Any) -> Any:
        if isinstance(at, str) and not at.isdecimal() and at not in get_args(Place):
            raise PolicyError(
                f"kv_policy.at is {at!r}; allowed: a token position (1 or more) or, in a chat, "
                + " or ".join(repr(place) for place in get_args(Place)),
                param="kv_policy.at",
            )
        return at

    @model_validator(mode="after")
    def _budget_in_range(self) -> Self:
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

    @model_validator(mode="after")
    def _shared_as_it_is(self) -> Self:
        for name, allowed in (("when", "always"), ("prefill", "whole")) if self.share else ():
            if getattr(self, name) != allowed:
                raise PolicyError(
                    f"kv_policy.share is true and kv_policy.{name} is {getattr(self, name)!r}: what is kept would "
                    f"depend on load; allowed with share: {allowed!r}",
                    param="kv_policy.share",
                )
        return self

    @property
    def protected(self) -> int:
        """Tokens that are kept whatever the scores say."""
        return 0

    # -- when, and how many ------------------------------------------------------------------------

    def prompt_of(self, tokens: int) -> int:
        """How many of a prompt's tokens count as prompt: those up to `at`."""
        return min(self.at, tokens) if isinstance(self.at, int) else tokens

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

    def next_due(self, at: Moment) -> int:
        """Length of a generating request, behind `at`, before which `due` says None: it is not asked there.

        A class with a `due` of its own says this too, or is asked at every length.
        """
        return (at.logical // self.slack + 1) * self.slack if self.decode else NEVER

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

    # -- how the budget is divided among the layers --------------------------------------------------

    def shares(self, keep: int, num_layers: int, held: int) -> list[int] | None:
        """Tokens kept by each layer if their mean is `keep` of now `held`; None = the same in all."""
        return None

    def bundled(self, facts: Facts) -> bool:
        """Whether layers that share block tables on this server get the mean of what each of them was to get."""
        return False

    @property
    def own_shares(self) -> bool:
        """Whether `own_shares_of` divides the budget among the layers by this request's own evidence."""
        return False

    def own_shares_of(self, views: Sequence[LayerView], keep: int) -> list[float]:
        """Tokens that each layer keeps when the prompt is complete, their mean being `keep`. Asked on workers."""
        raise NotImplementedError

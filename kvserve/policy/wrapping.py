"""Policies around another one: that one ranks slots, and the wrapper makes something else of its ranks."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, field_validator, model_validator
from torch import Tensor

from kvserve.policy.budgeted import Budgeted
from kvserve.policy.errors import PolicyError
from kvserve.policy.evidence import Evidence, merged
from kvserve.policy.scoring import RankingPolicy
from kvserve.policy.types import Facts
from kvserve.policy.view import LayerView

DEEPEST = 4


@contextmanager
def _inside() -> Iterator[None]:
    """A refusal of the wrapped policy names the field that it stands in."""
    try:
        yield
    except PolicyError as error:
        raise error.inside("of") from None


def _read(value: Any) -> RankingPolicy:
    """A wrapped policy from what a user writes. Raises PolicyError."""
    from kvserve.policy import request  # which knows all policies, this one too

    if isinstance(value, RankingPolicy):
        return value
    with _inside():
        _refuse_deep(value)
        given = [name for name in request.fields(value) if name in Budgeted.model_fields]
        if given:
            raise PolicyError(
                f"kv_policy.{given[0]} is not a parameter of a wrapped policy: when to compact, and to how many "
                "tokens, is said beside 'of'",
                param=f"kv_policy.{given[0]}",
            )
        policy = request.parse(value)
        if not isinstance(policy, RankingPolicy):
            raise PolicyError(
                f"kv_policy is {policy.name!r}, which cannot be wrapped: it does not rank the slots of a KV head"
            )
    return policy


def _refuse_deep(value: Any) -> None:
    """A client could otherwise ask for as many policies inside one another as fit into a request."""
    for _ in range(DEEPEST):
        value = value.get("of") if isinstance(value, dict) else None
    if value is not None:
        raise PolicyError(f"kv_policy has more than {DEEPEST} policies inside one another; allowed: {DEEPEST}")


def _shown(policy: RankingPolicy) -> dict[str, Any]:
    """What `_read` turns into an equal policy."""
    return {name: value for name, value in policy.wire().items() if name not in Budgeted.model_fields}


_SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
Wrapped = Annotated[
    RankingPolicy,
    BeforeValidator(_read),
    PlainSerializer(_shown),
    WithJsonSchema({"anyOf": [{"type": "string"}, _SCHEMA]}),
]
"""In requests the name of a policy, or an object with its name and parameters."""


class WrappingPolicy(RankingPolicy):
    """A policy that ranks anew what `of` has ranked. It says when and how many, `of` what is protected.

    The wrapped policy divides the budget among the layers, if it does; evidence is that of both.
    """

    needs_weights: ClassVar[bool] = False  # whether it multiplies ranks, which must be attention then

    of: Wrapped = Field("snapkv", validate_default=True, description="The policy that ranks: its name, or an object")
    decode: bool = Field(True, description="Compact while generating too; as the wrapped policy does unless given")

    @model_validator(mode="before")
    @classmethod
    def _decode_as_wrapped(cls, fields: dict[str, Any]) -> dict[str, Any]:
        of = _read(fields.get("of", cls.model_fields["of"].default))
        return {"decode": of.decode, **fields, "of": of}

    @field_validator("of")
    @classmethod
    def _fits(cls, of: RankingPolicy) -> RankingPolicy:
        if cls.needs_weights and not of.weights:
            raise PolicyError(
                f"kv_policy.of is {of.name!r}, whose ranks are no attention weights; {cls.name!r} multiplies them",
                param="kv_policy.of",
            )
        return of

    def reranked(self, ranks: Tensor, view: LayerView, keep: int) -> Tensor:
        """(H, n) ranks of `of`, infinite where protected -> (H, n) new ones; those of protected slots do not count."""
        raise NotImplementedError

    def ranks(self, view: LayerView, keep: int) -> Tensor:
        ranks = self.of.ranks(view, keep)
        return torch.where(ranks == math.inf, ranks, self.reranked(ranks, view, keep))

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return merged(self.of.evidence, self.reads)

    @property
    def protected(self) -> int:
        return self.of.protected

    @property
    def salt(self) -> str | None:
        return self.of.salt

    def check(self, facts: Facts) -> None:
        super().check(facts)
        with _inside():
            self.of.check(facts)

    def settled(self, facts: Facts) -> Self:
        return self.model_copy(update={"of": self.of.settled(facts)})

    def for_prompt(self, tokens: int) -> Self:
        return self.model_copy(update={"of": self.of.for_prompt(tokens)})

    def shares(self, keep: int, num_layers: int, held: int) -> list[int] | None:
        return self.of.shares(keep, num_layers, held)

    def bundled(self, facts: Facts) -> bool:
        return self.of.bundled(facts)

    @property
    def own_shares(self) -> bool:
        return self.of.own_shares

    def own_shares_of(self, views: Sequence[LayerView], keep: int) -> list[float]:
        return self.of.own_shares_of(views, keep)

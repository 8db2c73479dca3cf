"""What is installed and what a policy looks like from outside; for `/v1/kv/policies` and the command line."""

from typing import Any

from pydantic import BaseModel, Field

from kvserve.policy import Policy, registry
from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError, PolicyFault, blaming
from server.http.choice import Choice


class PolicyCard(BaseModel):
    """One policy."""

    object: str = "kv_policy"
    name: str
    idea: str = Field(description="What it does, in one line")
    paper: str = Field(description="Where it comes from; empty for controls")
    compresses: bool
    budgeted: bool = Field(default=True, description="Whether exactly as many tokens stay as a request asks for")
    evidence: list[str] = Field(description="What it reads of a layer: keys, values, queries, ...")
    parameters: dict[str, Any] = Field(description="JSON schema of the parameters")
    supported: bool | None = Field(
        default=None, description="Whether this server can run it with default parameters; null if none was asked"
    )
    reason: str | None = Field(default=None, description="Why not")


class PolicyList(BaseModel):
    """All installed policies."""

    object: str = "list"
    data: list[PolicyCard]


def card(name: str, choice: Choice | None = None) -> PolicyCard:
    """The card of an installed policy; raises PolicyError for another name."""
    cls = registry.get(name)
    refusal = _refusal(cls, choice) if choice is not None else None
    return PolicyCard(
        name=cls.name,
        idea=_idea(cls),
        paper=cls.paper,
        compresses=cls.compresses,
        budgeted=cls.compresses and cls.budgeted,
        evidence=_evidence(cls),
        parameters=cls.model_json_schema(),
        supported=None if choice is None else refusal is None,
        reason=str(refusal) if refusal else None,
    )


def _evidence(cls: type[Policy]) -> list[str]:
    """What it reads with default parameters; of one that fails without any, what its class declares."""
    try:
        with blaming(cls.name, "it was being shown"):
            declared = cls.model_validate({}).evidence
    except PolicyFault:
        declared = cls.reads
    return [one.name for one in declared]


def _refusal(cls: type[Policy], choice: Choice) -> Exception | None:
    """Why this server cannot run the policy; one that fails when it is asked is shown as it is."""
    try:
        with blaming(cls.name, "it was being shown"):
            return choice.refusal(wire.read(cls.name))
    except (PolicyError, PolicyFault) as error:
        return error


def cards(choice: Choice | None = None) -> PolicyList:
    """Every policy, those that could not be imported with the reason."""
    found = [card(name, choice) for name in registry.installed()]
    return PolicyList(data=[*found, *(_broken(*item) for item in registry.broken().items())])


def _broken(name: str, why: str) -> PolicyCard:
    return PolicyCard(
        name=name,
        idea="could not be imported",
        paper="",
        compresses=False,
        evidence=[],
        parameters={},
        supported=False,
        reason=why,
    )


def _idea(cls: type[Policy]) -> str:
    """The first paragraph of the docstring."""
    return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())

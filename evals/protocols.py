"""When a policy acts and what it may forget, as parameters of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SLACK = 32
"""While generating, compact this often: answers here are hundreds of tokens long, not thousands."""

PROTOCOLS = {
    "inside": "the prompt is compacted at its end, so the policy sees the question; generated tokens stay",
    "after": "the context is compacted before the question is read; question and generated tokens stay",
    "decode": "the whole prompt stays; beside it, `budget` of the generated tokens",
    "decode-open": "the prompt is not compacted at its end, but its tokens compete with the generated ones: its length "
    "+ `budget` stay",
    "both": "the prompt is compacted at its end, and all that is held again while generating",
}
SHARES_OF_BUDGET = ("recent_share", "drop")
"""Parameters that are shares of a budget: where the prompt is protected, of what is beside it."""
STREAMING = "streaming"  # keeps the newest tokens and nothing else
RELATIVE = ("inside", "after", "both")
"""Protocols in which a budget may be a fraction of the tokens seen; in the others it is a number of tokens."""


@dataclass(frozen=True)
class EvalSizes:
    """Tokens of one item's prompt, and of the context in it."""

    prompt: int
    context: int


class Unsuitable(ValueError):
    """A protocol that a policy has no parameters for."""


def kv_policy(
    protocol: str, fields: Mapping[str, Any], known: Mapping[str, Any], budget: float, sizes: EvalSizes, number: int = 0
) -> dict[str, Any]:
    """What to send for the policy `fields`, whose parameters are `known`; what it names itself stays.

    number: of the item; a policy that draws lots draws others for each. Raises Unsuitable.
    """
    made: dict[str, Any] = {"protect_prompt": protocol == "decode", "seed": number}
    made |= _prompt(sizes, protocol, budget) if protocol in ("inside", "after") else {"decode": True, "slack": SLACK}
    if protocol == "decode":
        made |= _protected(fields, known, int(budget), sizes.prompt)
    elif protocol == "decode-open":
        made |= {"budget": sizes.prompt + int(budget)}
    else:
        made |= {"budget": budget}
    given = {name: value for name, value in fields.items() if name != "of" or "of" not in made}
    return {**{name: value for name, value in made.items() if name in known}, **given}


def _prompt(sizes: EvalSizes, protocol: str, budget: float) -> dict[str, Any]:
    return {"decode": False, **({"at": sizes.context} if protocol == "after" else {})}


def _protected(fields: Mapping[str, Any], known: Mapping[str, Any], budget: int, prompt: int) -> dict[str, Any]:
    """Keep the prompt as the policy itself does, or else as sinks; what it has shares of, it shares out beside it."""
    if "protect_prompt" in known:
        return {"budget": budget}
    if "of" in known:  # what a wrapped policy protects, its wrapper does
        inner = fields.get("of", known["of"]["default"])
        inner = {"name": inner} if isinstance(inner, str) else dict(inner)
        return {"budget": prompt + budget, "of": {**inner, "sinks": prompt}}
    if "sinks" not in known:
        raise Unsuitable(f"{fields['name']!r} has no parameter that protects the prompt")
    part = budget / (prompt + budget)
    shares = {name: known[name]["default"] * part for name in SHARES_OF_BUDGET if name in known}
    return {"budget": prompt + budget, "sinks": prompt, **shares}


def newest(fields: Mapping[str, Any], known: Mapping[str, Any]) -> int | None:
    """How many of the newest tokens a policy keeps whatever their scores; None where the budget is what decides."""
    if fields["name"] == STREAMING or "recent_share" in known:
        return None
    return max((fields.get(name, known[name]["default"]) for name in ("recent", "window") if name in known), default=0)

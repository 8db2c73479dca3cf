"""From what a user writes to a validated policy, and over the wire to the engine."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from kvserve.policy import Facts, Policy, registry
from kvserve.policy.errors import PolicyError, blaming

KEY = "kv_policy"  # in SamplingParams.extra_args: canonical JSON of the policy
CALL = "kv_call"  # in SamplingParams.extra_args: id under which the API process files the outcome
ERROR = "error"  # in the record that travels back: what the policy did wrong, which ended the request
CANARY = "kv_canary"  # in SamplingParams.extra_args, never from a client: see `server.canary.replay`
CANARY_CHUNK = 128
"""Tokens of a replay in one step of the engine: bounds how long a request that arrives meanwhile waits, and the memory
for the logits of a whole step."""
INTERNAL = (CALL, CANARY)

KEPT = 1024
"""Policies that a process remembers."""
LONGEST = 4096
"""Characters of a string by which a policy is remembered."""


class Accepted(NamedTuple):
    """A policy that has been read, and the string that stands for it in all processes."""

    policy: Policy
    text: str


_accepted: dict[str, Accepted] = {}


def read(value: Any) -> Accepted:
    """`parse`, but once in a process for each string, and for the canonical string of whatever has been read.

    So what a client sent is parsed where it comes in, and all who get the canonical string later find the policy.
    """
    known = _accepted.get(value) if isinstance(value, str) else None
    if known is not None:
        return known
    policy = parse(value)
    with blaming(policy.name, "its parameters were being read"):
        made = Accepted(policy, dump(policy))
    if len(_accepted) > KEPT:
        _accepted.clear()
    for text in (made.text, value):
        if isinstance(text, str) and len(text) <= LONGEST:
            _accepted[text] = made
    return made


def forget() -> None:
    """For tests that count: as in a new process."""
    _accepted.clear()
    settled.cache_clear()
    built.cache_clear()


@lru_cache(maxsize=KEPT)
def settled(text: str, facts: Facts) -> Policy:
    """The policy that a string stands for, checked for this server and knowing it. Raises PolicyError."""
    policy = read(text).policy
    policy.check(facts)
    return policy.settled(facts)


@lru_cache(maxsize=KEPT)
def built(text: str, facts: Facts, prompt: int) -> Policy:
    """The policy as it runs for a prompt of so many tokens. Requests share it: it is frozen. Raises PolicyError."""
    return settled(text, facts).for_prompt(prompt)


def parse(value: Any) -> Policy:
    """A policy from `"name"`, `"name:budget"`, a JSON object in a string, or a mapping.

    Raises PolicyError naming the field, the value and what is allowed.
    """
    given = fields(value)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise PolicyError(f"kv_policy needs a 'name' (a string), got {name!r}", param="kv_policy.name")
    cls = registry.get(name)
    with blaming(cls.name, "its parameters were being read"):
        try:
            return cls(**given)
        except ValidationError as error:
            raise _explained(cls, error) from None


def dump(policy: Policy) -> str:
    """The canonical string that `parse` turns back into an equal policy."""
    return json.dumps(policy.wire(), sort_keys=True)


def refuse_internal(
    extra_args: dict[str, Any] | None, where: str = "vllm_xargs", ours: Callable[[Any], bool] | None = None
) -> None:
    """Raise PolicyError if a client has set what only kvserve sets. `ours` knows the ids that were given out."""
    for key in INTERNAL:
        if key not in (extra_args or {}) or (key == CALL and ours is not None and ours((extra_args or {})[key])):
            continue
        raise PolicyError(f"{where}.{key} is set by kvserve itself; leave it out", param=f"{where}.{key}")


def shown_budget(policy: Policy) -> int | float | None:
    return policy.budget if policy.compresses else None


def fields(value: Any) -> dict[str, Any]:
    """What a user wrote, as an object. Raises PolicyError."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            try:
                value = json.loads(text)
            except (
                ValueError,
                RecursionError,
            ) as error:  # the latter and numbers too long are valid JSON, but not here
                raise PolicyError(f"kv_policy is not valid JSON: {error}") from None
        else:
            return _short_form(text)
    if not isinstance(value, dict):
        raise PolicyError(
            f"kv_policy must be a string 'name' or 'name:budget' or an object, got {type(value).__name__}"
        )
    return dict(value)


def _short_form(text: str) -> dict[str, Any]:
    name, colon, budget = text.partition(":")
    if not name:
        raise PolicyError(f"kv_policy is {text!r}; allowed: 'name' or 'name:budget'")
    if not colon:
        return {"name": name}
    for convert in (int, float):
        try:
            return {"name": name, "budget": convert(budget)}
        except ValueError:
            continue
    raise PolicyError(
        f"kv_policy is {text!r}: {budget!r} is not a budget; allowed: a whole number >= 1 or a fraction in (0, 1]",
        param="kv_policy.budget",
    )


def _explained(cls: type[Policy], error: ValidationError) -> PolicyError:
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, PolicyError):
        return inner
    field = str(first["loc"][0]) if first["loc"] else ""
    param = f"kv_policy.{field}" if field else "kv_policy"
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(cls.model_fields) or "none"
        message = f"{param} is not a parameter of {cls.name!r}; allowed: {allowed}"
    else:
        message = f"{param} is {first['input']!r}: {first['msg']}"
        about = cls.model_fields[field].description if field in cls.model_fields else None
        message += f" ({about})" if about else ""
    return PolicyError(message, param=param)

"""The policies that are measured, as requests name them."""

from collections.abc import Callable
from typing import Any

from bench.sizes import SLACK, BenchSizes
from kvserve.policy import registry
from kvserve.policy.errors import PolicyError
from kvserve.policy.types import Facts

Request = dict[str, Any]

BUDGETED: dict[str, Callable[[BenchSizes], Request]] = {
    "streaming": lambda sizes: {"name": "streaming", "budget": sizes.budget, "slack": SLACK},
    # snapkv acts on the prompt only unless told otherwise, and then its budget would not hold.
    "snapkv": lambda sizes: {"name": "snapkv", "budget": sizes.budget, "slack": SLACK, "decode": True},
    # Drops half of its budget at a time, in a rhythm of its own: slack does not count while decoding.
    "scissorhands": lambda sizes: {"name": "scissorhands", "budget": sizes.budget, "slack": SLACK},
}


def spoken(name: str, sizes: BenchSizes) -> str:
    return f"{name}:{sizes.budget}"


HOLDS: Request = {"decode": True, "protect_prompt": False}
"""Parameters, of the policies that have them, with which the budget holds for prompt and generated tokens alike."""


def comparable(name: str) -> Request:
    """The request of a policy with its defaults, but for what keeps it from holding one budget of all tokens."""
    fields = registry.get(name).model_fields
    changed = {field: value for field, value in HOLDS.items() if field in fields and fields[field].default != value}
    return {"name": name, **changed}


def refusals(facts: Facts) -> dict[str, str]:
    """Installed policies that could not be imported or that such a server refuses, and why."""
    found = dict(registry.broken())
    for name, cls in registry.installed().items():
        if cls.compresses and not cls.budgeted:
            found[name] = "a request does not choose how much it keeps"
            continue
        try:
            cls.model_validate({k: v for k, v in comparable(name).items() if k != "name"}).check(facts)
        except PolicyError as error:
            found[name] = str(error)
    return found

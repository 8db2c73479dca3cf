"""The policies that are measured, as requests name them."""

from collections.abc import Callable
from typing import Any

from bench.sizes import SLACK, Sizes

Request = dict[str, Any]

BUDGETED: dict[str, Callable[[Sizes], Request]] = {
    "streaming": lambda sizes: {"name": "streaming", "budget": sizes.budget, "slack": SLACK},
    # snapkv acts on the prompt only unless told otherwise, and then its budget would not hold.
    "snapkv": lambda sizes: {"name": "snapkv", "budget": sizes.budget, "slack": SLACK, "decode": True},
    # Drops half of its budget at a time, in a rhythm of its own: slack does not count while decoding.
    "scissorhands": lambda sizes: {"name": "scissorhands", "budget": sizes.budget, "slack": SLACK},
}


def spoken(name: str, sizes: Sizes) -> str:
    return f"{name}:{sizes.budget}"

"""Misspelt or misplaced `kv_policy` fields: refused, because the request would be served uncompressed otherwise."""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError

PLACES = ("extra_args", "extra_body", "extra_headers", "extra_query", "sampling_params", "vllm_xargs")
"""Objects in a body where a policy is meant if it is there; the first four are arguments of clients, not fields."""

OTHER_NAMES = ("kvcachepolicy", "kvcompressionpolicy", "kvpolicies", "kvservepolicy")

DEPTH = 3
"""How deep nested objects are searched."""


def means_policy(name: str) -> bool:
    """Whether this name means the field: other case, other separators, or one letter more, less or wrong."""
    plain = re.sub("[^a-z0-9]", "", name.lower()).removeprefix("x")
    if abs(len(plain) - len("kvpolicy")) > 1:
        return plain in OTHER_NAMES
    return plain in OTHER_NAMES or SequenceMatcher(None, plain, "kvpolicy").ratio() >= 0.875


def misplaced(body: Mapping[str, Any], read: str, depth: int = DEPTH) -> str | None:
    """The path of the first field of a body that means a policy and is not one; `read` is the object that is read,
    if any."""
    for name, value in body.items():
        if name != wire.KEY and means_policy(name):
            return name
        if isinstance(value, Mapping) and (name in PLACES or name == read) and depth:
            if wire.KEY in value and name != read:
                return f"{name}.{wire.KEY}"
            if (inner := misplaced(value, "", depth - 1)) is not None:
                return f"{name}.{inner}"
    return None


def misnamed(names: Iterable[str], right: str) -> str | None:
    """The first of the names of headers, or of a query, that means a policy and is not `right`."""
    return next((name for name in names if name.lower() != right.lower() and means_policy(name)), None)


def refuse_misspelt(body: Mapping[str, Any], read: str, headers: Iterable[str], query: Iterable[str]) -> None:
    """Raise PolicyError, named after the field, for a policy that this request means and nobody reads."""
    if (path := misplaced(body, read)) is not None:
        raise _refusal(path, f"the field {path}")
    if (name := misnamed(headers, "X-KV-Policy")) is not None:
        raise _refusal(name, f"the header {name}")
    if (name := misnamed(query, "")) is not None:
        raise _refusal(name, f"the parameter {name} of the address")


def _refusal(param: str, what: str) -> PolicyError:
    return PolicyError(
        f"{what} is not read, so the cache would not be compressed; write 'kv_policy' at the top of the body, "
        "or the header 'X-KV-Policy'",
        param=param,
    )

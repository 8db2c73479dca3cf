"""Shared compressed prefixes in the engines' snapshots."""

from collections.abc import Iterable
from math import inf, nextafter
from typing import Any

from kvserve.stats import SharedPrefix


def aged(prefix: SharedPrefix, seconds: float) -> SharedPrefix:
    """The same prefix so much later: an idle engine sends no snapshots."""
    age, idle = prefix["age_seconds"] + seconds, prefix["idle_seconds"] + seconds
    return {**prefix, "age_seconds": age, "idle_seconds": idle}


def without(snapshot: dict[str, Any], prefix_id: str) -> dict[str, Any]:
    """The snapshot as an engine's next one will be that has dropped the prefix: newer than this one, by the least."""
    kept = [prefix for prefix in snapshot["prefixes"] if prefix["id"] != prefix_id]
    gone = sum(prefix["bytes"] for prefix in snapshot["prefixes"] if prefix["id"] == prefix_id)
    held = max(0, snapshot["prefix_bytes"] - gone)
    return {**snapshot, "at": nextafter(snapshot["at"], inf), "prefixes": kept, "prefix_bytes": held}


def by_use(prefixes: Iterable[SharedPrefix]) -> list[SharedPrefix]:
    """Last used first; one that several engines hold is one, with the bytes and hits of all of them."""
    found: dict[str, SharedPrefix] = {}
    for prefix in prefixes:
        found[prefix["id"]] = _together(found[prefix["id"]], prefix) if prefix["id"] in found else prefix
    return sorted(found.values(), key=lambda prefix: prefix["idle_seconds"])


def _together(a: SharedPrefix, b: SharedPrefix) -> SharedPrefix:
    return {
        **a,
        "bytes": a["bytes"] + b["bytes"],
        "hits": a["hits"] + b["hits"],
        "age_seconds": max(a["age_seconds"], b["age_seconds"]),
        "idle_seconds": min(a["idle_seconds"], b["idle_seconds"]),
    }

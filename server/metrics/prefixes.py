"""Shared compressed prefixes in the engines' snapshots."""

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

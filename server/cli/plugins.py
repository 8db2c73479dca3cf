"""VLLM_PLUGINS: vLLM loads an endpoint plugin only if it is named there, and then nothing unnamed."""

from collections.abc import Iterable, MutableMapping
from importlib.metadata import EntryPoint, distributions

VARIABLE = "VLLM_PLUGINS"
OURS = "kvserve"
ENDPOINTS = "vllm.endpoint_plugins"


def installed() -> list[EntryPoint]:
    """vLLM's plugins of all groups."""
    found = (entry for distribution in distributions() for entry in distribution.entry_points)
    return [entry for entry in found if entry.group.startswith("vllm.")]


def allowed(current: str | None, found: Iterable[EntryPoint]) -> str:
    """The value to set: the user's list and ours, or all that would load if the variable were unset.

    Endpoint plugins of others are left out of the latter, as they do not load without being named.
    """
    if current is not None:
        names = [name for name in current.split(",") if name]
    else:
        names = sorted({entry.name for entry in found if entry.group != ENDPOINTS})
    return ",".join([*(name for name in names if name != OURS), OURS])


def allow(environ: MutableMapping[str, str]) -> None:
    """Name ours without disabling others."""
    environ[VARIABLE] = allowed(environ.get(VARIABLE), installed())

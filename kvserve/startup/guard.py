"""Whether kvserve can run with this vLLM: its version, the signatures of all that we override, how it is started."""

import importlib
import inspect
from functools import cache
from typing import Any

from kvserve.startup import vllm_0_33
from kvserve.startup.overridden import SIGNATURES
from kvserve.startup.refusals import refusal, started
from kvserve.startup.version import vllm_version

SUPPORTED = ("0.32.", vllm_0_33.VERSION)


class UnsupportedError(RuntimeError):
    """This vLLM, or the way it was started, cannot run kvserve."""


def _parameters(owner: str, name: str) -> str | None:
    """What a method of vLLM takes, or "property"; None if there is none."""
    module, _, cls = owner.rpartition(".")
    found = inspect.getattr_static(getattr(importlib.import_module(module), cls, None), name, None)
    if isinstance(found, property):
        return "property"
    found = getattr(found, "__func__", found)
    return " ".join(inspect.signature(found).parameters) if callable(found) else None


def signatures(version: str) -> dict[str, dict[str, str]]:
    """What kvserve expects of this version of vLLM: class -> method -> parameters."""
    return vllm_0_33.overlaid(SIGNATURES) if version.startswith(vllm_0_33.VERSION) else SIGNATURES


@cache
def problem() -> str | None:
    """Why kvserve cannot run with the installed vLLM, in one sentence; None if it can."""
    found = vllm_version()
    if found is None:
        return "vLLM is not installed; install kvserve[cpu] or kvserve[cuda]"
    if not found.startswith(SUPPORTED):
        known = "x and ".join(SUPPORTED) + "x"
        return f"kvserve was written for vLLM {known}, and found {found}; install kvserve[cpu] or kvserve[cuda]"
    for owner, expected in signatures(found).items():
        for name, names in expected.items():
            now, method = _parameters(owner, name), f"{owner.rpartition('.')[2]}.{name}"
            if now is None:
                return f"vLLM {found} has no {method}, which kvserve overrides"
            if now != names:
                return f"vLLM {found} changed {method}({now}); kvserve expects ({names})"
    return None


def verify() -> None:
    """Raise UnsupportedError unless the installed vLLM is one that kvserve was written against."""
    if (why := problem()) is not None:
        raise UnsupportedError(why)


def refuse_unsupported(vllm_config: Any) -> None:
    """Raise UnsupportedError naming every start-up option that rules out compression."""
    verify()
    if (why := refusal(started(vllm_config))) is not None:
        raise UnsupportedError(why)

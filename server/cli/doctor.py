"""`kvserve doctor`: what this machine, this vLLM and this model can serve, and why not the rest."""

import importlib
import platform
from collections.abc import Iterator
from itertools import chain

from kvserve.startup.refusals import REQUESTS, TABLE
from server.cli.architecture import model_findings
from server.cli.report_line import Finding

NOT_SUPPORTED = tuple(reason.partition(":")[0] for reason in (*TABLE, *REQUESTS))
"""What is refused at the start, or of a request."""


def examine(model: str | None) -> int:
    """Print the report; 1 if anything rules out serving."""
    findings = []
    for finding in chain(_machine(), model_findings(model)):
        print(finding)
        findings.append(finding)
    print("--  not supported: " + "; ".join(NOT_SUPPORTED))
    bad = [finding for finding in findings if finding.ok is False]
    print("this machine can serve it" if not bad else f"cannot serve: {'; '.join(f.subject for f in bad)}")
    return 1 if bad else 0


# -- machine ------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding((3, 11) <= tuple(map(int, version.split(".")[:2])) < (3, 14), "python", f"{version} (3.11-3.13)")
    yield _vllm()
    yield from _torch()


def _vllm() -> Finding:
    from kvserve.startup.guard import SUPPORTED, problem
    from kvserve.startup.version import vllm_version

    if (why := problem()) is not None:
        return Finding(False, "vllm", why)
    return Finding(True, "vllm", f"{vllm_version()} (supported: {', '.join(f'{prefix}x' for prefix in SUPPORTED)})")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding(False, "torch", str(error))
        return
    yield Finding(True, "torch", torch.__version__)
    yield _torchvision()
    if torch.cuda.is_available():
        yield Finding(True, "platform", f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    else:
        yield Finding(True, "platform", f"CPU, {platform.machine()}, {torch.get_num_threads()} threads")


def _torchvision() -> Finding:
    """vLLM imports it if it is there; one built for another torch breaks the start of any server."""
    try:
        return Finding(True, "torchvision", importlib.import_module("torchvision").__version__)
    except ModuleNotFoundError:
        return Finding(None, "torchvision", "not installed (only image models need it)")
    except Exception as error:  # whatever a half-compatible binary raises
        return Finding(False, "torchvision", f"cannot be imported, and vLLM will try: {error}")

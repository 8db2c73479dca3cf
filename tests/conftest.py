"""Settings that must be in place before vLLM is imported anywhere in the test process."""

import os
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and spin on busy machines
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = ("tests/clients/", "tests/deploy/")
"""Packages of tests that use one server together, in the order of their files."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run the suite, a file's tests stay together, and so do those of a package that shares."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = [package for package in SHARED if nodeid.startswith(package)]
            return shared[0] if shared else super()._split_scope(nodeid)

    return Together(config, log)

"""Settings that must be in place before vLLM is imported anywhere in the test process."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and spin on busy machines
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = ("clients", "deploy")
"""Packages of tests that use one server together, in the order of their files."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Where several processes run the suite, a file's tests stay together, and so do those of a package that shares."""
    parts = item.path.relative_to(Path(__file__).parent).parts
    item.add_marker(pytest.mark.xdist_group(parts[0] if parts[0] in SHARED else "/".join(parts)))

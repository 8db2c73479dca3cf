"""Settings that must be in place before vLLM is imported anywhere in the test process."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and spin on busy machines
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # vLLM drafts n-grams with numba, which sets the number for torch too
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).parent
SCRIPTS = str(Path(sys.executable).parent)
QUICK = """
bench evals handbook measuring policies test_names.py test_rooms.py
kvserve/test_admission.py kvserve/test_gather.py kvserve/test_ksa_config.py kvserve/test_queries.py
kvserve/test_request.py kvserve/test_salts.py kvserve/test_slots.py kvserve/test_summary_file.py kvserve/test_view.py
kvserve/test_vllm_0_33.py
loadtests/test_plots.py loadtests/test_report.py loadtests/test_sizes.py loadtests/test_soak.py
loadtests/test_cpu_time.py
models/test_fetch.py models/test_mini_network.py models/test_mini_tasks.py models/test_mini_tokenizer.py
deploy/test_kubernetes.py deploy/test_rules.py
server/test_choice.py server/test_chosen_model.py server/test_usage.py
""".split()
"""What `make quick` runs, below this folder: it imports no vLLM and starts no Python, so no engine and no server."""
NOT_QUICK = """
bench/test_kernels.py measuring/test_server.py evals/test_measuring.py evals/beside/test_worker.py
evals/distance/test_asking.py policies/test_ksa.py
""".split()

SHARED = ("tests/clients/", "tests/deploy/")
"""Packages of tests that use one server together, in the order of their files."""
LONGEST = """
clients/ engine/test_reference.py engine/test_modes.py engine/test_drafts.py server/test_counts.py engine/test_faults.py
deploy/ server/test_browser.py engine/test_connectors.py engine/test_preempted.py engine/test_pipeline.py
evals/test_measuring.py engine/test_ksa.py server/test_calibrate.py server/test_http.py server/test_other_apis.py
server/test_canary_server.py server/test_canary_adapter.py server/test_default_server.py engine/test_v2.py
engine/test_fuzz.py loadtests/test_command.py zoo/test_shapes.py examples/
""".split()
"""What takes longest comes first where several processes share the tests, so that none is alone at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run the suite, a file's tests stay together, and so do those of a package that shares."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = [package for package in SHARED if nodeid.startswith(package)]
            return shared[0] if shared else super()._split_scope(nodeid)

    return Together(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only tests that need no engine; vLLM cannot be imported")


def pytest_configure(config: pytest.Config) -> None:
    spreads = getattr(config.option, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ
    if config.getoption("--quick") and not spreads:  # the process that spreads the tests starts the others
        sys.addaudithook(_forbid_engines)


def _forbid_engines(event: str, args: tuple[Any, ...]) -> None:
    """Not an ImportError, which is often caught."""
    if event == "import" and args[0].partition(".")[0] == "vllm":
        raise RuntimeError("a test of `make quick` imports vLLM; see QUICK in tests/conftest.py")
    if event == "subprocess.Popen" and str(args[0]).startswith(SCRIPTS):
        raise RuntimeError(f"a test of `make quick` starts {args[0]}; see QUICK in tests/conftest.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _place(item.nodeid))  # the order within a file stays


def _place(nodeid: str) -> int:
    return next((i for i, start in enumerate(LONGEST) if nodeid.startswith(f"tests/{start}")), len(LONGEST))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--quick") or collection_path == HERE:
        return None
    left_out = any(collection_path == HERE / part for part in NOT_QUICK)
    chosen = any(_meet(collection_path, HERE / part) for part in QUICK)
    return True if left_out or not chosen else None


def _meet(one: Path, other: Path) -> bool:
    """Whether one of them lies in the other."""
    return one.is_relative_to(other) or other.is_relative_to(one)

"""The engine's tests once more, on vLLM's V2 model runner. What `make test` runs of it is in test_modes and here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.interpreted import ROOT, V2

HERE = Path(__file__).parent
SAMPLE = "tests/engine/test_fuzz.py::test_a_little_traffic[4groups]"
"""Steps under pressure, each checked: what stands in the block tables, who holds which blocks."""
ENGINES = [*HERE.glob("test_*.py"), *(HERE.parent / "zoo").glob("test_*.py")]
FILES = sorted(str(path.relative_to(ROOT)) for path in ENGINES if path.name not in ("test_modes.py", "test_v2.py"))


@pytest.mark.parametrize("place", [SAMPLE, *(pytest.param(file, marks=pytest.mark.slow) for file in FILES)])
def test_on_the_v2_runner(place: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "-m", "not slow", place]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **V2}, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 5), done.stdout[-6000:] + done.stderr[-2000:]  # 5: no test of a file is a quick one

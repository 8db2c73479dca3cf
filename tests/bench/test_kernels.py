"""The bench of the kernels, interpreted: that it checks, that it says when a check fails, and what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kernels
from measuring import results
from measuring.report import rows


def _run(*argv: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    script = f"import sys; {before}; from bench.kernels import main; sys.exit(main({list(argv)!r}))"
    env = {**os.environ, "TRITON_INTERPRET": "1"}  # chosen when triton is imported
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=env)


def test_every_part_runs_and_no_speed_is_claimed(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    done = _run("--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["interpreted"] and record["checks_passed"] > 20 and not record["failed"]
    assert {part: len(table) for part, table in record["parts"].items()} == {"a": 8, "b": 1, "c": 3}
    assert not [
        value
        for table in record["parts"].values()
        for row in table
        for value in row.values()
        if isinstance(value, float)
    ]
    assert "no speed" in done.stdout and done.stdout == out.with_suffix(".md").read_text() + "\n"


@pytest.mark.parametrize(
    ("before", "complaint"),
    [
        ("m.move = lambda *a, **k: None", "bench.kernels: mover, token-major, float32 x 64, in place: "),
        pytest.param(
            "m.column_sums = lambda q, k, *_: 0 * k[:, None, :, 0]",
            "bench.kernels: mass, torch.float32, heads of 64, ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_kernel_is_named_and_nothing_is_timed(before: str, complaint: str, tmp_path: Path) -> None:
    done = _run(
        "--device", "cpu", "--out", str(tmp_path / "no.json"), before=f"import bench.kernel_checks as m; {before}"
    )
    assert done.returncode == 1
    assert complaint in done.stderr
    assert not list(tmp_path.iterdir())


def test_numbers_have_four_digits() -> None:
    assert results.rounded({"a": [1234.567, 3, None, "x"]}, kernels.DIGITS) == {"a": [1235.0, 3, None, "x"]}
    assert [kernels.shown(value) for value in (0.0012345, 12345.6, 7, None)] == ["0.001234", "1.235e+04", "7", ""]
    assert rows([["a"]]) == "| a |"

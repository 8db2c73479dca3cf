"""The command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench.__main__ as command
from bench.sizes import BenchSizes
from kvserve.policy import registry
from measuring.machine import about, commit
from measuring.repetitions import Repetitions


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--parts", "--repeats", "--out", "--quick"))


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--parts", "a,z"], "['z']; allowed: a, b, c, d, e, f, g"),
        (["--repeats", "0"], "--repeats is 0; allowed: 1 or more"),
    ],
)
def test_bad_options_are_refused_by_name(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(argv)
    assert complaint in capsys.readouterr().err


def test_an_interrupt_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(parts: list[str], sizes: BenchSizes, repeats: int, book: Repetitions) -> None:
        book.add("a", "stock", step_ms=10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert command.main(["--out", str(tmp_path / "bench.json")]) == 130
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["complete"] is False
    assert record["parts"]["a"]["stock"]["step_ms"]["raw"] == [10.0]
    assert "| a | stock | 10.00 |" in capsys.readouterr().out


def test_a_budget_that_no_context_outgrows_is_refused() -> None:
    with pytest.raises(ValueError, match="twice the budget"):
        BenchSizes(contexts=(512,), budget=512)


def test_the_machine_is_described_without_git_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() is None
    described = about()
    assert described["machine"]["cpu"]
    assert described["versions"]["python"]


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--repeats", "1", "--out", str(out)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    record = json.loads(out.read_text())
    assert record["complete"] is True
    assert sorted(record["parts"]) == ["a", "b", "c", "d"]
    assert record["parts"]["c"]["full"]["at_once"]["raw"] == [3]
    assert run.stdout.count("| --- | --- |") == 1, "one table"


@pytest.mark.slow
def test_every_policy_is_measured_or_refused_with_the_reason(tmp_path: Path) -> None:
    out = tmp_path / "policies.json"
    run = subprocess.run(
        [sys.executable, "-m", "bench", "--parts", "e,f", "--quick", "--repeats", "1", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    record = json.loads(out.read_text())
    measured = {case.partition(":")[0] for case in record["parts"]["e"] if ":" in case}
    refused = {case.removeprefix("e: ") for case in record["refused"]}
    assert measured | refused == {name for name, policy in registry.installed().items() if policy.compresses}
    assert {"embedded: h2o every 4", "8B layer: h2o every 1", "8B layer: expected-attention"} <= set(
        record["parts"]["f"]
    )

"""The command."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import loadtests.__main__ as command
from loadtests import generator
from loadtests.measurements import Measurements
from loadtests.sizes import LONG, QUICK, SHORT, LoadSizes
from tests.server.running import forking


def test_help_names_every_option_and_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(
        option in said for option in ("--scenarios", "--repeats", "--long", "--quick", "--out", *command.SCENARIOS)
    )


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--scenarios", "ample,storm"], "['storm']; allowed: ample, tight, mixed, prefix, decode, churn, soak"),
        (["--repeats", "0"], "--repeats is 0; allowed: 1 or more"),
    ],
)
def test_bad_options_are_refused_by_name(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(argv)
    assert complaint in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "guidellm" else object())
    with pytest.raises(SystemExit):
        command.main([])
    assert "guidellm not installed; the extra `load`" in capsys.readouterr().err


def test_one_server_per_pool_and_none_without_work() -> None:
    everything = command.plan(command.SCENARIOS, SHORT)
    assert everything == {
        1.0: ["ample", "mixed", "prefix"],
        0.5: ["tight"],
        0.25: ["tight", "decode", "churn", "soak"],
    }
    assert command.plan(["churn"], SHORT) == {0.25: ["churn"]}
    assert command.plan(["ample"], LONG) == {1.5: ["ample"], 1.0: ["ample"]}


@pytest.fixture
def no_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "prepare", lambda: None)


@pytest.mark.usefixtures("no_forks")
def test_an_interrupt_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(scenarios: Sequence[str], sizes: LoadSizes, notes: Measurements) -> None:
        notes.add("decode", "full @ 25 %", tokens_per_s=310.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert command.main(["--out", str(tmp_path / "loadtest.json")]) == 130
    record = json.loads((tmp_path / "loadtest.json").read_text())
    assert record["complete"] is False
    assert record["parts"]["decode"]["full @ 25 %"]["tokens_per_s"]["raw"] == [310.0]
    assert "| decode | full @ 25 % | 310 |" in capsys.readouterr().out


@pytest.mark.usefixtures("no_forks")
@pytest.mark.parametrize(("argv", "repeats"), [([], 1), (["--long"], 3), (["--long", "--repeats", "2"], 2)])
def test_repeats_are_the_forms_unless_chosen(
    argv: list[str], repeats: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(command, "run", lambda scenarios, sizes, notes: seen.append(sizes.repeats))
    assert command.main([*argv, "--out", str(tmp_path / "loadtest.json")]) == 0
    assert seen == [repeats]


@pytest.mark.usefixtures("no_forks")
@pytest.mark.parametrize(("left", "code"), [(0, 0), (4096, 1)])
def test_what_must_hold_and_does_not_fails_the_run(
    left: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(scenarios: Sequence[str], sizes: LoadSizes, notes: Measurements) -> None:
        notes.check("soak", "bytes still held", left, 0)

    monkeypatch.setattr(command, "run", measured)
    assert command.main(["--out", str(tmp_path / "loadtest.json")]) == code


def _quick(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests", "--quick", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=forking(os.environ))


def test_a_real_server_answers_several_policies_and_counts_them(tmp_path: Path) -> None:
    run = _quick(tmp_path / "loadtest.json", "--scenarios", "ample,mixed")
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "loadtest.json").read_text())
    crossover, mixed = record["parts"]["crossover"], record["parts"]["mixed"]
    assert list(crossover) == ["full @ 100 %", "streaming:256 @ 100 %"]
    assert len(crossover["full @ 100 %"]["tokens_per_s"]["raw"]) == 2
    assert crossover["full @ 100 %"]["pool_mib"]["median"] == QUICK.pool(1.0) * 256 / 1024  # 2 KiB per token
    assert {"full in the mix", "streaming:256 in the mix"} <= set(mixed)
    assert all(values["failed"]["raw"] == [0] for values in mixed.values())
    assert run.stdout.count("| --- | --- |") == 1, "one table"


@pytest.mark.slow
def test_every_scenario_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = _quick(tmp_path / "loadtest.json")
    record = json.loads((tmp_path / "loadtest.json").read_text())
    assert record["complete"] is True, run.stderr
    assert set(record["parts"]) == {"crossover", "mixed", "prefix", "decode", "churn", "soak"}
    assert record["parts"]["churn"]["killed"]["cancelled"]["median"] >= 2
    assert record["parts"]["prefix"]["streaming:256"]["hit_rate"]["median"] > 0.5
    assert {figure["part"] for figure in record["figures"]} == {"mixed", "churn", "soak"}
    # Five seconds are too short for the memory to settle; what is held by requests must be gone.
    missed = [figure["what"] for figure in record["figures"] if not figure["kept"] and "memory" not in figure["what"]]
    assert missed == []
    assert (tmp_path / "loadtest-crossover.png").stat().st_size > 10_000

"""The command line, and a run that is interrupted and goes on: attention only, so that no server is needed."""

import json

import pytest

from evals.claims import command
from evals.claims.claim import Claim, Condition, Findings
from evals.intervals import Estimate


def look(seen, items, stop=()):
    seen.append(items)
    if len(seen) in stop:
        raise KeyboardInterrupt
    return Findings([Condition("it is", Estimate(1.0, 0.9, 1.1), 0.5, "")])


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Two claims, of which the second is interrupted at first; what was looked at; the command."""
    seen = []
    claims = tuple(
        Claim(name, "P", "says", "why", look=lambda items: look(seen, items, stop=(2,))) for name in ("one", "two")
    )
    monkeypatch.setattr(command, "CLAIMS", claims)
    out = tmp_path / "claims.json"
    return seen, out, lambda *argv: command.main([*argv, "--out", str(out)])


def test_an_interrupted_run_goes_on(run, capsys):
    seen, out, main = run
    assert main("--items", "100") == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert not out.exists()
    assert main("--items", "100") == 0
    assert seen == [30, 30, 30], "the first claim is not looked at again"
    assert [claim["verdict"] for claim in json.loads(out.read_text())["claims"]] == ["reproduced"] * 2
    assert json.loads(out.read_text())["parts"] == 2
    assert sorted(path.name for path in out.parent.iterdir()) == ["claims.json", "claims.md"]
    main("--items", "100", "--only", "two")
    assert len(seen) == 4 and len(json.loads(out.read_text())["claims"]) == 2, "what was known of the other stays"


def test_rendering_changes_nothing(run, capsys):
    _, out, main = run
    main("--items", "10"), main("--items", "10")
    before = out.read_text()
    assert main("--render") == 0
    assert out.read_text() == before
    assert (
        "| [one](#one) | says | 1 / 0 / 0 | it is: 1.000 (0.900 to 1.100), bar 0.500 | **reproduced** |"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "poetry"], "--only poetry: no such claim; there are scissorhands-persistence"),
        (["--items", "1"], "--items is 1; allowed: 2 or more"),
    ],
)
def test_mistakes(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_only_takes_beginnings():
    made = command.parser()
    names = [c.name for c in command.chosen(made, made.parse_args(["--only", "prefixkv", "elastic-merge"]))]
    assert names == ["elastic-merge", "prefixkv-layers", "prefixkv-uniform", "prefixkv-offline", "prefixkv-speed"]

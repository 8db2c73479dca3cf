"""How a run ends."""

from pathlib import Path

import pytest

from measuring.command import attempted
from measuring.journal import OtherSettings


def _ends(error: BaseException | None) -> int:
    def run() -> None:
        if error is not None:
            raise error

    return attempted("evals", run, (ConnectionError, LookupError), Path("run.jsonl"))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (ConnectionError("gone"), 1, "evals: gone\n"),
        (ExceptionGroup("tasks", [ExceptionGroup("", [ValueError("x")]), IndexError("lost")]), 1, "evals: lost\n"),
        (OtherSettings("not those"), 2, "evals: not those\n"),
        (KeyboardInterrupt(), 130, "\nevals: interrupted; the same command goes on from run.jsonl\n"),
    ],
)
def test_exit_codes(error: BaseException | None, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ends(error) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), ExceptionGroup("", [ValueError("of ours")])])
def test_other_errors_are_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        _ends(error)

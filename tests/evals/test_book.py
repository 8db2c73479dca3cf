"""An interrupted run goes on; another run is refused."""

import json

import pytest

from evals.cells import Cell
from evals.forced import Forced
from evals.journal import EvalJournal
from measuring.journal import OtherSettings

CELL = Cell("niah", "completion", 512, "inside", "snapkv", 0.25)
OTHER = CELL._replace(policy="prefixkv")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "run.jsonl"


def filled(path, settings=None):
    book = EvalJournal(path, settings or {"seed": 0, "budgets": (0.5, 64)}, {"commit": "a"})
    book.score(CELL, 0, 1.0, 0.25, 0.3)
    book.score(CELL, 1, 0.0, 0.25, 0.3)
    book.force(CELL, 1, Forced(0.5, 0.1, 1.0))
    book.refuse(OTHER, "needs groups")
    book.close()


def test_it_goes_on(path):
    filled(path)
    book = EvalJournal(path, {"seed": 0, "budgets": (0.5, 64)}, {"commit": "b"})
    assert book.scores[CELL] == {0: (1.0, 0.25, 0.3), 1: (0.0, 0.25, 0.3)}
    assert book.forced[CELL] == {1: Forced(0.5, 0.1, 1.0)}
    assert book.refused == {OTHER: "needs groups"}
    assert [session["commit"] for session in book.sessions] == ["a", "b"]
    assert [book.has(CELL, n, forced=False) for n in range(3)] == [True, True, False]
    assert [book.has(CELL, n, forced=True) for n in range(3)] == [False, True, False]
    assert book.has(OTHER, 7, forced=True)


def test_a_line_cut_off_by_a_crash_is_dropped(path):
    filled(path)
    path.write_text(path.read_text() + '{"cell": ["niah", "compl')
    book = EvalJournal(path, {"seed": 0, "budgets": (0.5, 64)}, {"commit": "b"})
    book.score(CELL, 2, 1.0, 0.25, 0.3)
    book.close()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 8
    assert sorted(EvalJournal(path, {"seed": 0, "budgets": (0.5, 64)}, {}).scores[CELL]) == [0, 1, 2]


def test_other_settings_are_refused(path):
    filled(path)
    with pytest.raises(OtherSettings, match=r"other settings \(items, seed\); go on with those, or .* --fresh"):
        EvalJournal(path, {"seed": 1, "budgets": (0.5, 64), "items": 3}, {})
    assert len(path.read_text().splitlines()) == 6, "the file is as it was"

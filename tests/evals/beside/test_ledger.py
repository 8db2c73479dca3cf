"""An interrupted comparison goes on, and not with other settings."""

import pytest

from evals.beside.journal import SidesJournal
from measuring.journal import OtherSettings

KEY = ("niah", "after", 3, "kvserve")
SETTINGS = {"items": 4, "budgets": (0.5, 0.25)}


def test_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "run.jsonl"
    first = SidesJournal(path, SETTINGS)
    first.answered(KEY, [["run", 0.5, " 1692.", 1.0, True]])
    first.close()
    with path.open("a") as file:
        file.write('[["niah","after",4,"kv')
    again = SidesJournal(path, SETTINGS)
    assert again.entries == {KEY: [["run", 0.5, " 1692.", 1.0, True]]}
    again.answered((*KEY[:2], 4, KEY[3]), [])
    again.close()
    assert SidesJournal(path, SETTINGS).entries.keys() == {KEY, ("niah", "after", 4, "kvserve")}


def test_a_run_that_died_at_once_begins_anew(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"items": 4, "bud')
    SidesJournal(path, SETTINGS).close()
    assert SidesJournal(path, SETTINGS).entries == {}


def test_other_settings_are_refused(tmp_path):
    SidesJournal(tmp_path / "run.jsonl", SETTINGS).close()
    with pytest.raises(OtherSettings, match="--fresh"):
        SidesJournal(tmp_path / "run.jsonl", {**SETTINGS, "items": 5})

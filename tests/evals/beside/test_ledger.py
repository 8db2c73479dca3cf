"""An interrupted comparison goes on, and not with other settings."""

import pytest

from evals.beside.ledger import Ledger
from evals.book import OtherSettings

KEY = ("niah", "after", 3, "kvserve")
SETTINGS = {"items": 4, "budgets": (0.5, 0.25)}


def test_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "run.jsonl"
    first = Ledger(path, SETTINGS)
    first.add(KEY, [["run", 0.5, " 1692.", 1.0, True]])
    first.close()
    with path.open("a") as file:
        file.write('[["niah","after",4,"kv')
    again = Ledger(path, SETTINGS)
    assert again.entries == {KEY: [["run", 0.5, " 1692.", 1.0, True]]}
    again.add((*KEY[:2], 4, KEY[3]), [])
    again.close()
    assert Ledger(path, SETTINGS).entries.keys() == {KEY, ("niah", "after", 4, "kvserve")}


def test_a_run_that_died_at_once_begins_anew(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"items": 4, "bud')
    Ledger(path, SETTINGS).close()
    assert Ledger(path, SETTINGS).entries == {}


def test_other_settings_are_refused(tmp_path):
    Ledger(tmp_path / "run.jsonl", SETTINGS).close()
    with pytest.raises(OtherSettings, match="--fresh"):
        Ledger(tmp_path / "run.jsonl", {**SETTINGS, "items": 5})

"""Result files are short, and say the same."""

import json
from pathlib import Path

import pytest

from measuring.results import WIDTH, rounded, text, write

FOLDER = Path(__file__).parents[2] / "results"
RECORD = {
    "commit": "0123456789",
    "pool_bytes": 12345678901,
    "parts": {"a": {"full @ 8192": {"raw": [144.59811307151875] * 200, "median": 1234567.0}}},
    "rows": [{"name": "h2o", "found": {"mean": 0.2847222236295541, "low": 1e-9 / 3}, "why": "x" * 60}] * 10,
}


def test_fractions_have_six_digits_and_whole_numbers_all_of_theirs() -> None:
    assert rounded([0.123456789, 98765.4321, 1234567.0, 12345678901, 1e-9 / 3, True, None, "0.123456789"]) == [
        0.123457, 98765.4, 1234567.0, 12345678901, 3.33333e-10, True, None, "0.123456789",
    ]  # fmt: skip


def test_raw_values_and_rows_are_one_line_each() -> None:
    lines = text(RECORD).splitlines()
    assert json.loads(text(RECORD)) == rounded(RECORD)
    assert sum("144.598" in line for line in lines) == 1
    assert sum('"h2o"' in line for line in lines) == len(RECORD["rows"])
    assert all(len(line) <= WIDTH for line in lines if "raw" not in line)


def test_a_tuple_is_a_list(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "run.json", {"load": (0.123456789, 2.0)}, "# Table\n")
    assert json.loads((tmp_path / "folder" / "run.json").read_text()) == {"load": [0.123457, 2.0]}
    assert (tmp_path / "folder" / "run.md").read_text() == "# Table\n"
    assert len(list((tmp_path / "folder").iterdir())) == 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_as_they_are_written(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == text(json.loads(path.read_text(encoding="utf-8")))

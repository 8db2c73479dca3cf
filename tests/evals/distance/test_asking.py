"""`python -m evals.distance` asks a real server, and summary tokens answer over HTTP like any other policy."""

import json
import os

import pytest

from evals.distance.__main__ import main
from tests.server.running import forking


def test_two_items_of_every_cell(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", forking(os.environ)["PYTHONPATH"])
    out = tmp_path / "distance.json"
    assert main(["--items", "2", "--lengths", "512", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert out.with_suffix(".md").read_text() in said
    record = json.loads(out.read_text())
    cells = {(cell["policy"], cell["distance"]): cell for cell in record["cells"]}
    assert len(cells) == 15
    assert cells["full", 30]["entries"] == cells["full", 30]["bytes"] == 1
    assert cells["ksa", 400]["exact"]["mean"] >= 0.5  # the hybrid file finds what its full layer keeps
    assert 0.4 < cells["ksa", 400]["entries"] < 0.5
    assert cells["ksa, no summaries", 400]["entries"] < cells["ksa", 400]["entries"]
    assert cells["random", 400]["entries"] == pytest.approx(cells["ksa", 400]["entries"], abs=0.03)


def test_a_model_that_was_taught_none(tmp_path, capsys):
    assert main(["--model", str(tmp_path)]) == 2
    assert "has no summary parameters" in capsys.readouterr().err

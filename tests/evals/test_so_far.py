"""An interrupted run can be written up: with the cells that are complete, and it says so."""

import json

from evals.cells import Cell
from evals.command import main
from evals.journal import EvalJournal
from tests.evals.test_report import SETTINGS


def test_what_is_complete_is_written(tmp_path, capsys):
    out = tmp_path / "quality.json"
    about = {
        "date": "2026-01-01", "commit": "a", "machine": {"cpu": "x", "cores": 2, "threads": 1, "load_at_start": [0.0]},
        "versions": {"vllm": "0.32.0", "torch": "2"},
    }  # fmt: skip
    book = EvalJournal(out.with_suffix(".jsonl"), {**SETTINGS, "items": 2}, about)
    for policy, items in (("full", 2), ("random", 2), ("snapkv", 1)):
        for item in range(items):
            book.score(
                Cell("niah", "completion", 512, "inside", policy, 1.0 if policy == "full" else 0.5), item, 1, 1, 1
            )
    book.close()
    assert main(["--render", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert {cell["policy"] for cell in record["cells"]} == {"full", "random"}
    assert record["unfinished"]
    assert "interrupted, and written up with what was complete" in capsys.readouterr().out

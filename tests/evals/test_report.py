"""The table says what the figures say."""

import json

import pytest

from evals import curves, markdown, report
from evals.cells import Cell
from evals.forced import Forced
from evals.journal import EvalJournal

ABOUT = {
    "commit": "abc",
    "date": "today",
    "machine": {"cpu": "a processor", "cores": 2, "load_at_start": [1.0, 1.0, 1.0]},
    "versions": {"vllm": "0", "torch": "1"},
}
SETTINGS = {"command": "kvserve eval", "model": "mini", "items": 100, "seed": 0, "block": 32}
RIGHT = {"full": 98, "perfect": 100, "good": 90, "random": 40, "alike": 42, "bad": 10}


@pytest.fixture
def book(tmp_path):
    book = EvalJournal(tmp_path / "run.jsonl", {}, ABOUT)
    for policy, right in RIGHT.items():
        for protocol in ("inside", "after"):
            for budget in (1.0,) if policy == "full" else (0.25, 0.24):  # whose blocks are as many
                cell = Cell("niah", "completion", 512, protocol, policy, budget)
                for item in range(100):
                    score = float((item * 37) % 100 < right)  # nested: who is better is right wherever the other is
                    book.score(cell, item, score, 0.25, 0.3125)
    book.refuse(Cell("niah", "completion", 512, "inside", "picky", 0.25), "kv_policy.budget is too small")
    return book


@pytest.fixture
def made(book):
    return json.loads(json.dumps(report.report(book, SETTINGS, 60.0, {"random": 32, "alike": 32, "bad": 1})))


def test_kinds_that_the_full_cache_fails_are_left_out(book):
    for item in range(100):
        book.score(Cell("vt", "chat", 512, "inside", "full", 1.0), item, float(item < 60), 1.0, 1.0)
    made = report.report(book, {**SETTINGS, "least": 0.9}, 60.0)
    assert {cell["task"] for cell in made["cells"]} == {"niah"}
    assert [(kind["task"], kind["score"]["mean"]) for kind in made["left_out"]] == [("vt", 0.6)]
    text = markdown.markdown(made)
    assert "- vt, 512 tokens, chat, `inside`: the full cache gets 60.0 (50.2–69.1) %" in text
    assert "## vt" not in text


def test_scores_by_wording(book):
    for policy, budget in (("full", 1.0), ("streaming", 0.25), ("streaming", 0.5)):
        for item in range(30):
            cell = Cell("niah_single", "chat", 512, "inside", policy, budget)
            book.score(cell, item, float(policy == "full" or (item % 3 == 1 and budget == 0.5)), 0.25, 0.3)
    text = markdown.markdown(report.report(book, SETTINGS, 60.0)).partition("## niah_single")[2]
    half, quarter = text.split("By wording, at ")[1:]
    assert half.splitlines()[0] == "50 %:" and quarter.splitlines()[0] == "25 %:"
    assert "| policy | begun | asked | pass key |" in half
    assert "| **full** | 100.0 | 100.0 | 100.0 |" in half and "| streaming | 0.0 | 100.0 | 0.0 |" in half
    assert "| streaming | 0.0 | 0.0 | 0.0 |" in quarter
    made = report.report(book, SETTINGS, 60.0)
    assert all("wordings" not in cell for cell in made["cells"] if cell["task"] == "niah")


def test_cells_that_are_teacher_forced_only(book, tmp_path):
    for policy, nll in (("full", 2.0), ("worse", 3.0), ("better", 2.5)):
        for item in range(3):
            cell = Cell("essay", "completion", 512, "inside", policy, 1.0 if policy == "full" else 0.25)
            book.force(cell, item, Forced(nll, nll - 2, 0.5))
    made = json.loads(json.dumps(report.report(book, SETTINGS, 60.0)))
    text = markdown.markdown(made).partition("## essay")[2]
    assert "Share of" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| policy | 25 % |"
    assert [row.split(" | ")[0].strip("| *") for row in rows[2:5]] == ["full", "better", "worse"]
    assert rows[3].endswith("| 2.500 (2.500–2.500) |")
    curves.draw(made, tmp_path / "quality.json")


def test_verdicts_are_of_paired_differences(made):
    verdicts = {c["policy"]: (c["against_random"] or {}).get("verdict") for c in made["cells"]}
    assert verdicts == {
        "full": None,
        "perfect": "better",
        "good": "better",
        "random": None,
        "alike": "same",
        "bad": "worse",
    }


def test_markdown(made):
    text = markdown.markdown(made)
    assert "| good | 90.0 (82.6–94.5) |" in text
    assert "| alike | 42.0 (32.8–51.8) ≈ |" in text
    assert "| bad | 10.0 (5.5–17.4) ▼ |" in text
    assert "`inside`: alike (at no budget better); bad (worse everywhere; protects 1 of the newest" in text
    assert "tokens, random 32)" in text
    assert "| policy | 25 % (31 % of bytes) | 24 % (31 % of bytes) |" in text
    assert "- picky, `inside` at 25 %: kv_policy.budget is too small" in text
    assert "commit abc" in text


def test_rows_stand_between_their_brackets(made):
    inside = [c for c in made["cells"] if c["protocol"] == "inside"]
    assert markdown.policies_of(inside) == ["full", "perfect", "good", "alike", "bad", "random"]


def test_curves(made, tmp_path):
    for again in (1, 2):
        curves.draw(made, tmp_path / f"run{again}.json")
    assert (tmp_path / "run1.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "run1.png").read_bytes() == (tmp_path / "run2.png").read_bytes()
    assert len(curves.figure(made).axes) == 2


def test_a_report_that_does_not_know_what_is_protected_says_nothing_of_it(made):
    text = markdown.markdown({**made, "newest": {}})
    assert "`inside`: alike (at no budget better); bad (worse everywhere)" in text
    assert "bad (worse everywhere)" in markdown.markdown({key: value for key, value in made.items() if key != "newest"})

"""The report says what the ledger says."""

import json

import pytest

from evals.beside.asking import CHOSEN, OURS, THEIRS, WHOLE
from evals.beside.journal import SidesJournal
from evals.beside.markdown import markdown, verdict
from evals.beside.pairs import PAIRS, cells, key
from evals.beside.report import report, speeds

SETTINGS = {
    "model": "mini",
    "items": 100,
    "tasks": ["niah"],
    "protocols": ["after"],
    "length": 512,
    "budgets": [0.25],
    "seed": 0,
}
PARTNER = {"kvpress": "0", "transformers": "5", "torch": "2", "threads": 1}
ABOUT = {
    "commit": "abc",
    "date": "today",
    "machine": {"cpu": "a processor", "cores": 2, "load_at_start": [1.0, 1.0, 1.0]},
    "versions": {"vllm": "0", "torch": "1"},
    "partner": PARTNER,
}
WORSE = {"press": "SnapKVPress"}  # kvpress is right in 60 of 100 items with it, in 90 with all others


def said(run, at, right):
    return [run, at, " yes" if right else " no", float(right), True]


@pytest.fixture
def quality(tmp_path):
    ledger = SidesJournal(tmp_path / "run.jsonl", SETTINGS)
    asked = cells(True, SETTINGS["budgets"])
    for n in range(100):
        ours = [said(key({"name": "full"}), 1.0, True)]
        theirs = [said(key({"press": "none"}), 1.0, True)]
        for pair, at in asked:
            ours.append(said(key(pair.ours), at, n < 90))
            theirs.append(said(key(pair.theirs), at, n < (60 if pair.theirs == WORSE else 90)))
        ledger.answered(("niah", "after", n, OURS), ours)
        ledger.answered(("niah", "after", n, THEIRS), theirs)
    first = PAIRS[0]
    ledger.answered(("niah", "after", 0, CHOSEN), [[first.label, 0.25, [[10, 10, 9], [10, 12, 10]]]])
    whole = [
        [key(first.theirs), 0.25, " yes"],
        [key(WORSE), 0.25, " other"],
        [key({"press": "P"}), 0.25, "RuntimeError: x"],
    ]
    ledger.answered(("niah", "after", 0, WHOLE), whole)
    return json.loads(json.dumps({"about": ABOUT, **report(ledger, SETTINGS)}))


def cell(quality, pair):
    [found] = [each for each in quality["cells"] if each.get("pair") == pair.label]
    return found


def test_cells(quality):
    [worse] = [pair for pair in PAIRS if pair.theirs == WORSE]
    found = cell(quality, worse)
    assert (found["ours"]["mean"], found["theirs"]["mean"]) == (0.9, 0.6)
    assert found["difference"]["mean"] == pytest.approx(0.3)
    assert found["same_text"] == pytest.approx(0.7)
    assert verdict(found) == "kvserve better"
    alike = cell(quality, PAIRS[0])
    assert verdict(alike) == "agree" and alike["same_text"] == 1.0
    assert alike["chosen"] == {"in_common": 19 / 22, "layers": 2}
    assert quality["whole"] == {"answers": 2, "same": 1, "failed": {'{"press": "P"}': "RuntimeError: x"}}


def test_markdown(quality):
    rows = [
        {"policy": "tova", "length": 512, "repeat": n, "theirs": 10.0, "ours": 5.0 + n, "at_once": 40.0}
        for n in (0, 1, 2)
    ]
    text = markdown({"quality": quality, "speed": {"about": ABOUT, "rows": speeds(rows)}})
    assert "- **shipped**: 6 of 7 cells agree" in text
    assert (
        "| snapkv (defaults) | SnapKVPress (defaults) | shipped | 25 % | 90.0 (82.6–94.5) | 60.0 (50.2–69.1) |" in text
    )
    assert "1 of 1 cells differ, at most by +30.0 points (`after`)" in text
    assert "Of 2 answers that its pipeline gave from beginning to end, 1 were the same text." in text
    assert 'fails with `{"press": "P"}`: `RuntimeError: x`' in text
    assert "| tova | 512 | 10 | 6 | 0.60 (0.55–0.65) | 40 | 4.00 (4.00–4.00) |" in text
    assert "kvpress 0 in its own environment: transformers 5" in text


def test_either_part_alone(quality):
    assert "tokens per second" not in markdown({"quality": quality})
    assert "Why they differ" not in markdown({"speed": {"about": ABOUT, "rows": []}})

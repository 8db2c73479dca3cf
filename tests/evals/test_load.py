"""Accuracy and speed of one load, from a server that is not there and from one that is."""

import asyncio

import pytest

from evals.items import drawn
from evals.load import __main__ as load
from evals.load.asking import LoadTurn, TimedAnswer
from evals.load.report import AccuracyAndSpeed
from measuring.repetitions import Repetitions

ABOUT = {
    "commit": "abc", "date": "today", "machine": {"cpu": "a processor", "cores": 2, "threads": 1},
    "versions": {"vllm": "0"},
}  # fmt: skip


@pytest.fixture
def told(texts, monkeypatch):
    """What needles are hidden in."""
    monkeypatch.setattr(load, "haystack", lambda _: texts)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--policies"),
        (["--policies", "tova:0.5", "--length", "99"], "--length is 99; allowed: 256 or more"),
        (["--policies", "tova:0.5", "--fits", "0"], "--fits is 0; allowed: 1 or more"),
    ],
)
def test_mistakes(argv, message, capsys):
    with pytest.raises(SystemExit):
        load.chosen(argv)
    assert message in capsys.readouterr().err


def test_the_pool_holds_so_many():
    settings, _ = load.chosen(["mini", "--policies", "full", "tova:0.5", "tova:0.5", "--length", "1000", "--fits", "3"])
    assert settings.policies == ("tova:0.5",)
    assert (settings.longest, settings.blocks) == (1314, 3 * 34 + 1)  # blocks of 32 tokens


def test_an_outcome():
    answers = [TimedAnswer("7", 10, 1.0, 2.0, 0.25), TimedAnswer("8", 10, 3.0, 4.0, 0.75)]
    found = LoadTurn(answers, [1.0, 0.0], 4.0).quantities()
    assert found["tokens_per_s"] == 5 and found["right"] == 0.5 and found["right_per_min"] == 15
    assert found["ttft_p50_s"] == 2 and found["ttft_p99_s"] == pytest.approx(2.98) and found["kept"] == 0.5


def test_full_is_first_and_last_and_turns_have_other_items(told, monkeypatch, tmp_path):
    asked = []

    async def fake(url, some, policy, tokens):
        asked.append((policy, some[0].number))
        return LoadTurn([TimedAnswer("", 16, 1.0, 2.0, 1.0)], [1.0], 2.0 if policy == "full" else 1.0)

    monkeypatch.setattr(load, "asked", fake)
    settings, _ = load.chosen(["mini", "--policies", "a", "b", "--turns", "2", "--requests", "2", "--length", "256"])
    found = Repetitions()
    asyncio.run(load.run(settings, "", found))
    order = [policy for policy, _ in asked]
    assert order == ["full", "a", "b", "full", "full", "b", "a", "full"]
    assert [number for _, number in asked] == [load.FIRST] * 4 + [load.FIRST + 2] * 4
    assert found.raw("load", "a", "of_full") == [2.0, 2.0] and found.raw("load", "full", "of_full") == [1.0] * 4
    text = AccuracyAndSpeed(found, settings, ABOUT, tmp_path / "load.json").text()
    assert "| load | a | 100.0 | 100 | 16.0 (16.0-16.0) | 2.00 (2.00-2.00) |" in text


def test_items_are_none_of_those_that_rank_policies(texts):
    [first] = drawn(texts, "niah_single", "chat", 256, 1, first=load.FIRST)
    assert first.number == load.FIRST and first != next(iter(drawn(texts, "niah_single", "chat", 256, 1)))


@pytest.mark.slow
def test_a_server_is_asked(told, tmp_path, capsys):
    """The mini model, which cannot find these needles: what is measured is that requests come and go."""
    out = tmp_path / "load.json"
    argv = [
        "mini",
        "--policies",
        "streaming:0.25",
        "--length",
        "256",
        "--answer",
        "16",
        "--requests",
        "4",
        "--fits",
        "2",
    ]
    assert load.main([*argv, "--turns", "1", "--out", str(out)]) == 0
    text = out.with_suffix(".md").read_text()
    assert "| load | streaming:0.25 |" in text and "mini in bfloat16: 4 requests at once" in text

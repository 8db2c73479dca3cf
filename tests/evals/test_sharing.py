"""Documents and conversations that are compressed once, from a server that is not there and from one that is."""

import asyncio

import pytest

from evals.sharing import __main__ as sharing
from evals.sharing import conversation, document
from evals.sharing.asking import SharingAnswer
from evals.sharing.report import Sharing
from measuring.repetitions import Repetitions
from tests.evals.test_load import ABOUT


@pytest.fixture(autouse=True)
def _told(texts, monkeypatch):
    for module in (document, conversation):
        monkeypatch.setattr(module, "essays", lambda: texts)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--policies"),
        (["--policies", "keydiff", "--length", "99"], "--length is 99; allowed: 256 or more"),
        (["--policies", "keydiff", "--budget", "2"], "--budget is 2.0; allowed: between 0 and 1"),
        (["--policies", "keydiff", "--parts", "books"], "--parts names ['books']; allowed: document, conversation"),
    ],
)
def test_mistakes(argv, message, capsys):
    with pytest.raises(SystemExit):
        sharing.chosen(argv)
    assert message in capsys.readouterr().err


def test_sizes():
    settings, _ = sharing.chosen(["mini", "--policies", "keydiff", "--length", "1000", "--turns", "4", "--turn", "100"])
    assert settings.turn_budget == 100
    assert settings.longest == 1000 * 5 // 4 + 256
    assert settings.blocks("document") == -(-1506 // 32) + 1
    assert settings.blocks("conversation") == -(-2 * 1506 // 32) + 1


def test_every_needle_is_asked_for():
    items = document.questions(600, 5)
    assert len({item.context for item in items}) == 1
    for item in items:
        assert f"is:{item.answer}." in item.context and item.lead
    assert len({item.answer for item in items}) == 5


def test_questions_are_about_what_was_told():
    said = conversation.turns(6, 100, 0)
    for i, turn in enumerate(said):
        assert turn.answer in turn.told
        asked = conversation.probed(said[: i + 1], 0)
        assert len(asked) == min(conversation.PROBES, i + 1) and set(asked) <= set(said[: i + 1])
    assert said != conversation.turns(6, 100, 1)


def test_all_are_told_what_full_answered(monkeypatch, tmp_path):
    """The first turn has nothing to compress; questions are not told later."""
    seen = []

    async def fake(client, messages, policy, salt, room):
        said = [m["content"] for m in messages]
        seen.append((policy["name"], said[1::2]))
        held = (0, 0) if policy["name"] == "full" else (10**6, 4 * 10**6)
        known = [word.strip(".") for text in said for word in text.split() if word.strip(".").isdigit()]
        text = " ".join(known) if said[-1].endswith("only.") else f"{policy['name']} {len(messages)}"
        return SharingAnswer(text, 1.0, 2.0, *held, 0, 7)

    monkeypatch.setattr(conversation, "ask", fake)
    settings, _ = sharing.chosen(["mini", "--policies", "keydiff", "--turns", "5", "--conversations", "1"])
    found = Repetitions()
    asyncio.run(sharing.converse(settings, "http://nobody", found))
    assert [name for name, _ in seen] == ["full"] * 11 + ["keydiff"] * 9
    assert seen[-1][1] == ["full 1", "full 3", "full 5", "full 7", "full 9"]
    for way, held, agrees in (("full", 4.0, 1.0), ("keydiff", 1.0, 0.2)):
        case = ("conversation", f"{way}, turn 5")
        assert found.raw(*case, "held_mb") == [held]
        assert found.raw(*case, "agrees") == [agrees]
        assert found.raw(*case, "right") == [1.0]
    report = Sharing(found, settings, ABOUT, tmp_path / "sharing.json")
    report.write()
    assert "| conversation | keydiff, turn 5 | 100.0 | 20 |" in report.text()


@pytest.mark.slow
def test_a_real_server(tmp_path):
    sizes = ["--length", "400", "--questions", "3", "--turns", "5", "--turn", "64", "--conversations", "1"]
    out = tmp_path / "sharing.json"
    assert sharing.main(["mini", "--dtype", "float32", "--policies", "keydiff", *sizes, "--out", str(out)]) == 0
    assert "| document | keydiff, shared |" in out.with_suffix(".md").read_text()

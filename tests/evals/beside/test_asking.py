"""Both sides get the same tokens, the same moment and the same number of tokens to keep."""

import asyncio

import pytest

from evals import items
from evals.beside import asking
from evals.beside.asking import CHOSEN, OURS, THEIRS, WHOLE, Asking, stayed
from evals.beside.journal import SidesJournal
from evals.endpoint import Said, Sized
from kvserve.policy.registry import installed

SETTINGS = {
    "items": 2,
    "tasks": ["niah", "vt"],
    "protocols": ["after", "inside"],
    "length": 300,
    "budgets": [0.5, 0.25, 0.125],
    "seed": 0,
    "looked_into": 1,
}


class FakeServer:
    """kvserve's side: always right, and keeps what it was told to."""

    def __init__(self):
        self.asked, self.sized_items = [], []

    async def policies(self):
        return {name: {"parameters": policy.model_json_schema()} for name, policy in installed().items()}

    async def sized(self, item):
        prompt = list(range(310))
        self.sized_items.append(Sized(item, prompt, [1] * 5, 300))
        return self.sized_items[-1]

    async def answer(self, sized, policy):
        self.asked.append(policy)
        gone = 0 if policy == "full" else policy.get("at", len(sized.prompt)) - policy["budget"]
        return Said(sized.item.answer, 1 - gone / (len(sized.prompt) + 4), 1.0)


class FakeWorker:
    """kvpress' side: always wrong."""

    def __init__(self):
        self.asked = []

    async def ask(self, do, **what):
        self.asked.append((do, what))
        if do == "keeps":
            return [[(keep, keep, keep - 1)] for _, _, keep in what["pairs"]]
        return [("?", keep) if do == "answers" else "?" for _, keep, _ in what["runs"]]


@pytest.fixture
def asked(tmp_path):
    """Server, worker and ledger of a whole run."""
    server, worker, ledger = FakeServer(), FakeWorker(), SidesJournal(tmp_path / "run.jsonl", SETTINGS)
    asyncio.run(Asking(SETTINGS, server, worker, ledger).run())
    return server, worker, ledger


def test_every_item_is_answered_by_both_sides(asked):
    _, _, ledger = asked
    sides = {(task, protocol): [OURS, THEIRS] for task in SETTINGS["tasks"] for protocol in SETTINGS["protocols"]}
    expected = {(*kind, number, side) for kind, both in sides.items() for number in range(2) for side in both}
    expected |= {(*kind, 0, side) for kind in sides for side in (CHOSEN, WHOLE)}
    assert ledger.entries.keys() == expected
    assert all(right == 1 and told for run, at, text, right, told in ledger.entries["vt", "after", 1, OURS])
    assert all(right == 0 and told for run, at, text, right, told in ledger.entries["vt", "after", 1, THEIRS])


def test_both_sides_act_at_the_same_token_and_keep_as_many(asked):
    server, worker, _ = asked
    theirs = {
        (what["act"], keep) for do, what in worker.asked if do == "answers" for run, keep, _ in what["runs"] if run
    }
    ours = {(policy.get("at", 310), policy["budget"]) for policy in server.asked if policy != "full"}
    assert (
        ours == theirs == {(act, keep) for act, keeps in ((300, (150, 75, 38)), (310, (155, 78, 39))) for keep in keeps}
    )


def test_what_is_there_is_not_asked_again(asked):
    server, worker, ledger = asked
    before = len(server.asked), len(worker.asked)
    asyncio.run(Asking(SETTINGS, server, worker, ledger).run())
    assert (len(server.asked), len(worker.asked)) == before


def test_stayed(monkeypatch):
    """300 tokens read, 310 in the prompt, 5 in the answer: a budget of 75 forgets 225, whenever the answer ends."""
    item = items.draw(items.world(), "niah", "completion", 300, 0)
    sized = Sized(item, [0] * 310, [1] * 5, 300)
    monkeypatch.setattr(asking, "acted", lambda *_: 300)
    assert all(stayed(1 - 225 / seen, 0.25, sized, "after") for seen in (311, 314, 315))
    assert not stayed(1 - 220 / 314, 0.25, sized, "after")
    assert not stayed(1.0, 0.25, sized, "after")
    assert stayed(1.0, 1.0, sized, "after")


def test_a_chat_with_a_real_text(texts, tmp_path, monkeypatch):
    """RULER's tasks are chats among essays, and both sides may say as much as the endpoint gives room for."""
    monkeypatch.setattr(items, "haystack", lambda _: texts)
    settings = {**SETTINGS, "tasks": ["niah_single"]}
    server, worker, ledger = FakeServer(), FakeWorker(), SidesJournal(tmp_path / "run.jsonl", settings)
    asyncio.run(Asking(settings, server, worker, ledger).run())
    assert {sized.item.form for sized in server.sized_items} == {"chat"}
    assert {what["new"] for do, what in worker.asked if do == "answers"} == {sized.room for sized in server.sized_items}
    assert all(right == 1 for *_, right, _ in ledger.entries["niah_single", "inside", 0, OURS])

"""Who is asked, and who is not, whatever the server says."""

import asyncio
import json

import pytest

from evals import items
from evals.cells import Contestant, Section
from evals.endpoint import Refused, Said, Sized
from evals.journal import EvalJournal
from evals.runner import Runner

SECTION = Section(("niah_single",), (256,), ("inside",), (0.5, 0.25), forms=("chat",))
CARD = {"supported": True, "parameters": {"properties": {"budget": {}}}}


class Answering:
    """An endpoint that gets a share of the items right under `full`, and all of them under policies."""

    def __init__(self, right=1.0, refuses=()):
        self.right, self.refuses = right, refuses

    async def sized(self, item):
        return Sized(item, [0] * 256, [0] * 3, 240)

    async def answer(self, sized, policy):
        name = policy if isinstance(policy, str) else policy["name"]
        if name in self.refuses:
            raise Refused(f"{name} is not allowed here")
        right = name != "full" or sized.item.number < 10 * self.right
        return Said(sized.item.answer if right else "no", 0.5, 0.5)


@pytest.fixture
def run(texts, monkeypatch, tmp_path):
    """Runs `full` and `streaming` on 10 items; returns the journal."""
    monkeypatch.setattr(items, "haystack", lambda _: texts)

    def run(endpoint, least=0.9):
        book = EvalJournal(tmp_path / "run.jsonl", {}, {})
        contestants = [Contestant({"name": "full"}), Contestant({"name": "streaming"})]
        cards = {"streaming": CARD}
        asyncio.run(Runner([SECTION], contestants, cards, endpoint, book, 10, 0, 4, None, least=least).run())
        book.close()
        return book

    return run


def asked(book):
    return {(cell.policy, cell.budget): len(found) for cell, found in book.scores.items()}


def test_all_are_asked(run):
    assert asked(run(Answering())) == {("full", 1.0): 10, ("streaming", 0.5): 10, ("streaming", 0.25): 10}


@pytest.mark.parametrize(("right", "least", "policies"), [(0.8, 0.9, 1), (0.9, 0.9, 3), (0.8, 0.0, 3)])
def test_only_where_the_full_cache_gets_enough_of_it(run, right, least, policies):
    assert len(asked(run(Answering(right), least))) == policies


def test_a_server_that_refuses_the_full_cache(run, tmp_path):
    """It is reported once, and the others are asked."""
    book = run(Answering(refuses=("full",)))
    assert asked(book) == {("streaming", 0.5): 10, ("streaming", 0.25): 10}
    assert {cell.policy: why for cell, why in book.refused.items()} == {"full": "full is not allowed here"}
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert sum("refused" in line for line in lines) == 1


def test_what_is_known_is_not_asked_again(run):
    run(Answering())
    assert asked(run(Answering(refuses=("full", "streaming")))) == asked(run(Answering()))

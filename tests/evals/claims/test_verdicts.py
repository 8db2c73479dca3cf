"""From answers to verdicts: the rule, conditions on the same items, and what is written."""

import json

import pytest

from evals.cells import FULL, RANDOM
from evals.claims import compare, scissorhands
from evals.claims.answers import Answers, Missing, balance
from evals.claims.ask import FP8, MICRO, MINI, SERVERS, STREAMING, generated
from evals.claims.claim import (
    FAILS,
    HOLDS,
    NOT,
    OPEN,
    PARTLY,
    REPRODUCED,
    UNTESTED,
    Claim,
    Condition,
    Findings,
    verdict,
)
from evals.claims.command import CLAIMS
from evals.claims.record import ordered, record
from evals.claims.table import markdown
from evals.forced import Forced
from evals.intervals import Estimate
from evals.journal import EvalJournal

ASK = generated(MINI, ("good",), task="niah", length=512, budgets=(0.5,))
GOOD = compare.cell("niah", 512, "good", 0.5)
RIGHT = {FULL: 100, RANDOM: 20, STREAMING: 30, "good": 97, "poor": 21}
SESSION = {
    "machine": {"cpu": "a", "cores": 2, "load_at_start": [0.1]},
    "versions": {"vllm": "1", "torch": "2"},
    "date": "today",
    "commit": "abc",
}


@pytest.fixture
def answers(tmp_path):
    book = EvalJournal(tmp_path / "a.jsonl", {}, {})
    for policy, right in RIGHT.items():
        where = GOOD._replace(policy=policy, budget=1.0 if policy == FULL else 0.5)
        for item in range(100):
            book.score(where, item, float(item < right), 0.5, 0.5)  # nested
            book.force(where, item, Forced(2.0 - right / 100 + item % 3 / 100, 0.0, 1.0))
    book.refuse(GOOD._replace(policy="picky"), "needs groups")
    return Answers(book)


def judged(*lows, bar=0.0):
    return verdict([Condition("x", Estimate(low + 0.1, low, low + 0.2), bar, "") for low in lows])


def test_the_rule():
    above, across, below = 0.01, -0.15, -0.5  # the mean of what lies across may be on either side
    assert judged(above, above) == REPRODUCED
    assert judged(above, across) == PARTLY
    assert judged(above, below, across) == PARTLY
    assert judged(above, below, below) == NOT
    assert judged(below, across, across) == NOT
    assert judged(across, across) == UNTESTED
    assert judged() == UNTESTED
    assert judged(-0.01, bar=-0.05) == REPRODUCED
    assert Condition("x", Estimate(0.0, 0.0, 0.0), 0.0, "").state == FAILS  # equal is not better


def test_comparisons_are_of_the_same_items(answers):
    poor, random = GOOD._replace(policy="poor"), GOOD._replace(policy=RANDOM)
    assert compare.better(answers, GOOD, random).state == HOLDS
    assert compare.better(answers, random, GOOD).state == FAILS
    # One item in a hundred more: unpaired it would drown, and paired it is not yet certain either.
    one = compare.better(answers, poor, random)
    assert one.found.mean == pytest.approx(0.01) and one.found.low == 0 and one.state == OPEN
    assert compare.better(answers, GOOD, random, "nll").found == pytest.approx((0.77, 0.77, 0.77))


def test_nearly_as_good(answers):
    full = GOOD._replace(policy=FULL, budget=1.0)
    assert compare.no_worse(answers, GOOD, full).state == OPEN  # 3 points less, perhaps 7
    assert compare.no_worse(answers, GOOD, full, bar=0.1).state == HOLDS
    assert compare.lossless(answers, GOOD, share=0.04).state == HOLDS
    assert compare.lossless(answers, GOOD, share=0.02).state == FAILS  # 0.03 nats more on 1.01


def test_balance_takes_the_items_that_all_have():
    assert balance([{0: 1.0, 1: 3.0, 9: 5.0}], [{0: 1.0, 1: 1.0}]).mean == 1.0


def test_what_the_server_refused_is_said(answers):
    with pytest.raises(Missing, match=r"picky at 0\.5 in niah: needs groups"):
        answers.values(GOOD._replace(policy="picky"))
    picky = Claim(
        "a",
        "P",
        "says",
        "why",
        judge=lambda books: Findings([compare.better(books["mini"], GOOD._replace(policy="picky"), GOOD)]),
    )
    made = record(picky, {"mini": answers}, 100)
    assert (made["verdict"], made["why"]) == (UNTESTED, "picky at 0.5 in niah: needs groups")


def test_a_record_and_its_table(answers):
    claim = Claim(
        "good-is-good", "A paper", "It is good (abstract)", "It hangs on this.", (ASK,),
        lambda books: Findings([compare.better(books["mini"], GOOD, GOOD._replace(policy=RANDOM))]),
    )  # fmt: skip
    untested = Claim("speed", "A paper", "It is fast", "There is no track.")
    made = json.loads(json.dumps([record(each, {"mini": answers}, 100) for each in (claim, untested)]))
    text = markdown({"session": SESSION, "seconds": 90, "parts": 2, "claims": made})
    assert "2 minutes in 2 parts on a, 2 cores" in text
    assert "| [good-is-good](#good-is-good) | It is good (abstract) | 1 / 0 / 0 | good at 50 % against random:" in text
    assert "| [speed](#speed) | It is fast | - | There is no track. | **cannot be tested here** |" in text
    assert "| **full** | 100.0 (96.3 to 100.0) |" in text
    assert "| **random** | 20.0 (13.3 to 28.9) |" in text
    assert "| **streaming** | 30.0 (21.9 to 39.6) |" in text
    assert "| good | 97.0 (91.5 to 99.0) |" in text
    assert "`python -m evals.claims --only good-is-good --items 100`" in text


def test_every_claim_asks_beside_its_controls():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert not (claim.judge and claim.look)
        assert bool(claim.asks) == (claim.judge is not None)
        for ask in claim.asks:
            assert ask.served in SERVERS
            assert [each.label for each in ask.contestants][:3] == [FULL, RANDOM, STREAMING]


def test_larger_and_quantised_are_differences_of_differences(tmp_path):
    """Made so that micro loses 40 points more, and fp8 costs 0.2 nats more where half is evicted."""
    books = {}
    for served, lost, nats in ((MINI, 10, 1.0), (MICRO, 50, 1.0), (FP8, 10, 1.2)):
        book = EvalJournal(tmp_path / f"{served.model}{len(served.flags)}.jsonl", {}, {})
        for policy in (FULL, "scissorhands", "snapkv"):
            for budget in (1.0,) if policy == FULL else scissorhands.TWO:
                where = compare.cell("niah", 512, policy, budget)
                for item in range(100):
                    book.score(where, item, float(policy == FULL or item >= lost), 0.5, 0.5)
                    book.force(where, item, Forced(0.5 if policy == FULL else nats, 0.0, 1.0))
        books[served.name] = Answers(book)
    larger = scissorhands.larger(books).conditions
    assert [round(each.found.mean, 6) for each in larger] == [0.4] * 4 and all(each.state == HOLDS for each in larger)
    nll = [each for each in scissorhands.quantised(books).conditions if each.unit == "nats"]
    assert [round(each.found.mean, 6) for each in nll] == [-0.2] * 4 and all(each.state == FAILS for each in nll)


def test_records_stand_in_the_order_of_the_claims():
    names = [claim.name for claim in CLAIMS[:2]]
    assert ordered([{"name": names[1]}, {"name": "gone"}, {"name": names[0]}], CLAIMS) == [{"name": n} for n in names]


def test_a_model_that_cannot_do_the_task_tells_nothing(tmp_path):
    book = EvalJournal(tmp_path / "b.jsonl", {}, {})
    for policy in (FULL, RANDOM, STREAMING, "good"):
        where = GOOD._replace(policy=policy, budget=1.0 if policy == FULL else 0.5)
        for item in range(100):
            book.score(where, item, float(item < (10 if policy == RANDOM else 70)), 0.5, 0.5)
    judge = lambda books: Findings([compare.better(books["mini"], GOOD, GOOD._replace(policy=RANDOM))])  # noqa: E731
    made = record(Claim("a", "P", "says", "Because.", (ASK,), judge), {"mini": Answers(book)}, 100)
    assert made["verdict"] == UNTESTED and made["conditions"][0]["state"] == HOLDS
    assert made["why"] == "At full cache mini gets only 70.0 % of niah right, less than 80 %. Because."

"""The needle stands where it is said to stand, the controls get what they should, and the report counts right."""

from argparse import Namespace
from pathlib import Path

import pytest

from evals import items
from evals.distance.asked import at_distance
from evals.distance.plan import DISTANCES, LENGTHS, POLICIES, DistanceLayout, cells
from evals.distance.report import DistanceAnswers, text
from evals.protocols import EvalSizes
from kvserve.policy import Facts, Moment, Summaries, request
from models.tasks.tokens import encode

HYBRID = DistanceLayout(Summaries(8, 8, ("summary", "full", "summary", "summary")))


@pytest.fixture(scope="module")
def world():
    return items.world()


@pytest.mark.parametrize("length", LENGTHS)
def test_the_distance_is_what_it_says(world, length):
    for distance in DISTANCES[length]:
        for number in range(3):
            item = at_distance(world, length, distance, number)
            code = item.answer.strip(" .")
            assert item.context.count(f" is {code}.") == 1
            behind = item.context[item.context.index(code) :] + item.question
            found = len(encode(world.tokenizer, behind))
            assert abs(found - distance) < 20
            assert HYBRID.inside(found) == HYBRID.inside(distance)
            assert abs(len(encode(world.tokenizer, item.prompt + item.answer)) - length) < 40


def test_equal_arguments_give_equal_items(world):
    assert at_distance(world, 512, 120, 3) == at_distance(world, 512, 120, 3)
    assert at_distance(world, 512, 120, 3).answer != at_distance(world, 512, 120, 4).answer


def test_the_controls_hold_what_they_should():
    sizes = EvalSizes(prompt=1010, context=1000)
    streaming, random = (request.parse(POLICIES[name](HYBRID, sizes, 5)) for name in ("streaming", "random"))
    moment = Moment(1000, 1000, "prefilled", 1000)
    assert (streaming.at, streaming.due(moment)) == (1000, 72)
    facts = Facts(4, 4, 32, 4096, 4096, 512, summaries=HYBRID.about)
    assert (random.at, random.due(moment)) == (1000, request.parse("ksa").settled(facts).for_prompt(1000).target(1000))
    assert random.recent == 64


def test_the_report_counts_right():
    found, args = DistanceAnswers(), Namespace(lengths=[512], items=4, model=Path("toy"), dtype="float32", seed=0)
    for cell in cells((512,)):
        right = {"full": 4, "ksa": 3, "streaming": 0}.get(cell.policy, 1)
        for number in range(4):
            found.add(cell, float(number < right), 0.25 if cell.policy == "ksa" else 1.0, 0.5)
    assert found.recovered(HYBRID, 512).mean == 0.75
    said = text(found, HYBRID, args)
    assert "| 512 tokens: distance | 30 (inside) | 120 | 400 |" in said
    assert "| ksa | 75.0 (30.1–95.4) |" in said
    assert "25.0 | 50.0 |" in said
    record = found.record(HYBRID, args)
    assert record["recovered"]["512"]["mean"] == 0.75
    assert [c["inside"] for c in record["cells"] if c["policy"] == "full"] == [True, False, False]

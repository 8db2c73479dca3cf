"""The generators and the scorers: who knows everything has 100 %, who guesses has chance."""

import re
from random import Random

import pytest

from evals import items
from evals.intervals import wilson
from evals.items import ASKED, draw, drawn
from evals.ruler import RULER
from evals.scorers import score
from models.tasks.tokens import encode

TAUGHT = [task for task in ASKED if task not in RULER]
FORMS = [(task, form) for task in TAUGHT for form in ("completion", "chat") if (task, form) != ("mqar", "chat")]
CODE = re.compile(r"The code for ([\w ]+) is (\d{4})\.")


def reader(item: items.Item) -> str:
    """Answers from the text of the prompt alone, without having seen the answer."""
    codes = dict(CODE.findall(item.context))
    key = re.search(r"[Tt]he code for ([\w ]+?)(?: is|\?)$", item.question)[1]
    return f" {codes[key]}." if item.form == "completion" else f"The code for {key} is {codes[key]}."


@pytest.mark.parametrize(("task", "form"), FORMS)
def test_an_oracle_has_100_percent(world, task, form):
    some = list(drawn(world, task, form, 512, 40))
    assert [score(task, item.answer, item.answer) for item in some] == [1.0] * 40


@pytest.mark.parametrize("task", ["niah", "niah_free"])
@pytest.mark.parametrize("form", ["completion", "chat"])
def test_the_prompt_holds_the_answer(world, task, form):
    some = list(drawn(world, task, form, 512, 40))
    assert [score(task, reader(item), item.answer) for item in some] == [1.0] * 40


@pytest.mark.parametrize(("task", "form"), FORMS)
def test_a_shuffler_scores_chance(world, task, form):
    """Answers of other items: right only where two items happen to have the same one."""
    some = list(drawn(world, task, form, 512, 200))
    answers = [item.answer for item in some]
    said = [answers[i - 1] for i in range(len(answers))]
    # Codes of four digits hardly ever agree.
    assert sum(score(task, a, item.answer) for a, item in zip(said, some, strict=True)) / 200 < 0.02


def test_a_guesser_among_the_needles_scores_one_in_their_number(world):
    rng, some = Random(0), list(drawn(world, "niah", "completion", 512, 1000))
    codes = [[code for _, code in CODE.findall(item.context)] for item in some]
    right = sum(score("niah", f" {rng.choice(c)}.", item.answer) for c, item in zip(codes, some, strict=True))
    chance = sum(1 / len(c) for c in codes) / len(some)
    _, low, high = wilson(right, len(some))
    assert low < chance < high
    assert 0.1 < chance < 0.5


def test_items_are_drawn_anew_and_repeat(world):
    first = draw(world, "niah", "completion", 512, 3, seed=1)
    assert first == draw(world, "niah", "completion", 512, 3, seed=1)
    others = [draw(world, "niah", "completion", 512, n, seed=s) for n, s in ((4, 1), (3, 2))]
    assert all(other.context != first.context for other in others)


@pytest.mark.parametrize(("task", "form"), FORMS)
@pytest.mark.parametrize("length", [512, 1024])
def test_length_is_what_was_asked_for(world, task, form, length):
    for item in drawn(world, task, form, length, 10):
        size = len(encode(world.tokenizer, item.prompt + item.answer))
        least = 0.85 if task.startswith("niah") or task == "vt" else 0.25  # others may be dense, without prose
        assert least * length < size < 1.05 * length


def test_context_and_question_are_apart(world):
    item = draw(world, "vt", "chat", 512, 0)
    assert item.messages == [{"role": "user", "content": item.context + item.question}]
    assert item.question.startswith(" Trace ")


def test_a_form_that_a_task_has_not(world):
    with pytest.raises(ValueError, match="task 'mqar' has no chat form; allowed: completion"):
        draw(world, "mqar", "chat", 512, 0)


def test_traces_are_scored_line_by_line():
    wanted = "\nStep 1: a = 1;\nStep 2: b = a;\nStep 3: c = b;\nEnd."
    assert score("chain", wanted, wanted) == 1
    assert score("chain", wanted.replace("b = a", "b = 7"), wanted) == 2 / 3
    assert score("chain", "Step 1: a = 1;\nStep 2", wanted) == 1 / 3
    assert score("chain", "Step 2: b = a;\nStep 1: a = 1;\nEnd.", wanted) == 0
    assert score("chain", "", wanted) == 0


def test_exact_is_exact():
    assert score("niah", " 4821.", " 4821.") == score("niah", "4821.\n", " 4821.") == 1
    assert score("niah", " 4821. The", " 4821.") == score("niah", " 482.", " 4821.") == score("niah", "", " 4821.") == 0

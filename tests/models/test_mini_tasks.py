"""The task generators: answerable, deterministic, of the length asked for."""

import re
from random import Random

import pytest

from models.tasks import prose
from models.tasks.generators import TASKS, retrieval_prompt
from models.tasks.scene import FORMS, tokens_of
from models.tasks.tokens import encode
from models.tasks.words import KEY_WORDS
from models.training.rows import FILL_WEIGHT, make_batch
from models.training.stages import MIX


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("tokens", [128, 512, 2048])
def test_scenes_round_trip_and_keep_to_their_length(world, task, tokens):
    for seed in range(5):
        scene = TASKS[task](Random(seed), world, tokens)
        for form in FORMS if scene.has_chat else ("completion",):
            ids, answers = tokens_of(world.tokenizer, scene.told(form))  # raises if token borders move
            assert len(ids) <= 1.1 * tokens + 16
            assert encode(world.tokenizer, world.tokenizer.decode(ids)) == ids
            assert any(answers) == bool(scene.turns)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [256, 512, 1500, 4000])
def test_a_retrieval_prompt_holds_its_answer_once(tokenizer, form, tokens):
    item = retrieval_prompt(tokenizer, seed=3, tokens=tokens, form=form)
    assert item.text.count(f"The code for {item.key} is {item.answer}.") == 1
    assert item.reply.removesuffix(".").endswith(item.answer)
    assert 0.9 * tokens <= len(encode(tokenizer, item.text)) <= tokens
    assert 0 <= item.depth < 1


def test_a_seed_gives_one_prompt(tokenizer):
    first, again, other = (retrieval_prompt(tokenizer, seed, 512) for seed in (1, 1, 2))
    assert first == again
    assert first.text != other.text


WRONG = [({"form": "poem"}, "form must be one of"), ({"needles": 50}, "tokens must be")]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_bad_arguments_are_refused_by_name(tokenizer, wrong, message):
    with pytest.raises(ValueError, match=message):
        retrieval_prompt(tokenizer, 0, 512, **wrong)


def test_held_out_documents_are_not_trained_on():
    sides = {name: prose._is_held_out(name) for name in (f"module{i}.py" for i in range(800))}
    assert 50 < sum(sides.values()) < 150  # one of eight
    assert len(prose.sentences(held_out=True)) > 1000


def test_key_words_are_distinct():
    assert len(set(KEY_WORDS)) == len(KEY_WORDS)


def test_a_chain_needs_things_that_its_own_report_told_long_ago(world):
    """Behind the roots, no thing of the report stands in the prompt beside the name that it is looked up by."""
    scene = TASKS["chain"](Random(7), world, 2048)
    report = scene.turns[0].chat_reply
    calls = re.findall(r"(\w+) calls (\w+); \2 has (\w+); \1 has \3\.", report)
    roots = scene.context.count(" has ")
    told_before = [report.index(f" {source} has {value}.") for _, source, value in calls]
    needed = [report.index(f"; {source} has {value};") for _, source, value in calls]
    distances = [world.size(report[old:new]) for old, new in zip(told_before, needed, strict=True)]
    own = [d for d, (_, source, _) in zip(distances, calls, strict=True) if f"{source} has" not in scene.context]
    assert len(own) == len(calls) - roots > 30
    assert sorted(own)[len(own) // 2] > 200 and min(own) > 100
    assert len({source for _, source, _ in calls}) == len(calls)  # asked once: no newer copy to read


def test_a_batch_is_repeatable_and_its_targets_follow_its_positions(world):
    first, again = (make_batch(world, MIX, rows=4, tokens=256, seed="s") for _ in range(2))
    assert (first.ids == again.ids).all() and (first.positions == again.positions).all()
    flat = first.ids.ravel()
    inner = first.positions % 256 < 255
    assert (flat[first.positions[inner] + 1] == first.targets[inner]).all()
    assert {round(float(weight), 4) for weight in first.weights} <= {0.0, FILL_WEIGHT, 1.0}

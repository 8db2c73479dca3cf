"""What is asked: items drawn anew from the task generators, never read from a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import cast

from tokenizers import Tokenizer

from evals.essays import essays
from evals.ruler import RULER, scene, to_go_on
from models import MINI
from models.tasks.generators import TASKS, Task
from models.tasks.scene import Haystack, Scene, World

ESSAY = "essay"
"""The task that asks nothing."""
ASKED = (*RULER, "niah", "niah_free", "vt", "quote", "mqar", "chain")
"""RULER's tasks, for models that people run, and those that the mini model was trained for."""


def prose(rng: Random, world: Haystack, tokens: int, turns: int = 1) -> Scene:
    """Sentences in their order; the last quarter is what is to follow. Nothing is asked: to be teacher-forced only."""
    return to_go_on(rng, world, tokens, eighths=6)


GENERATORS: dict[str, Task] = {**TASKS, "prose": prose}


@dataclass(frozen=True)
class Item:
    """One question about one text. A chat item puts context and question into one message of the user.

    lead: how the answer begins, if that is given; the assistant's message is begun with it.
    """

    task: str
    form: str  # completion or chat
    length: int  # tokens of prompt and answer together, about
    number: int
    context: str
    question: str
    answer: str
    lead: str = ""

    @property
    def prompt(self) -> str:
        return self.context + self.question

    @property
    def messages(self) -> list[dict[str, str]]:
        begun = [{"role": "assistant", "content": self.lead}] if self.lead else []
        return [{"role": "user", "content": self.prompt}, *begun]


def form_of(task: str) -> str:
    """How a task is asked unless told otherwise: RULER's are put to models that chat."""
    return "chat" if task in RULER and task != ESSAY else "completion"


def haystack(task: str) -> Haystack:
    """What a task's facts are hidden in. Raises FetchError for essays that are not to be had."""
    return essays() if task in RULER else world()


@cache
def world() -> World:
    """Held-out prose, measured with the embedded model's tokenizer; takes a second."""
    return World(Tokenizer.from_file(str(MINI / "tokenizer.json")), held_out=True)


def draw(world: Haystack, task: str, form: str, length: int, number: int, seed: int = 0) -> Item:
    """The item with this number; equal arguments give equal items. Raises ValueError if the task has no such form."""
    rng = Random(f"evals/{seed}/{task}/{length}/{number}")
    if task in RULER:
        told = scene(rng, world, task, length, number)
    else:
        told = GENERATORS[task](rng, cast("World", world), length, 1)
    [turn] = told.turns
    if form == "completion":
        return Item(task, form, length, number, told.context, turn.ask, turn.reply)
    if not told.has_chat:
        raise ValueError(f"task {task!r} has no chat form; allowed: completion")
    gap = "\n\n" if task in RULER else " "
    return Item(task, form, length, number, told.context, gap + turn.chat_ask, turn.chat_reply, turn.lead)


def drawn(
    world: Haystack, task: str, form: str, length: int, count: int, seed: int = 0, first: int = 0
) -> Iterator[Item]:
    """So many items, from the number `first` on."""
    return (draw(world, task, form, length, number, seed) for number in range(first, first + count))

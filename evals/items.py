"""What is asked: items drawn anew from the task generators, never read from a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer

from models import MINI
from models.tasks.generators import TASKS, Task
from models.tasks.scene import Scene, Turn, World

ASKED = ("niah", "niah_free", "vt", "quote", "mqar", "chain")
"""Tasks that look something up; `copy` and `lm` have no question."""


def prose(rng: Random, world: World, tokens: int, turns: int = 1) -> Scene:
    """Sentences in their order; the last quarter is what is to follow. Nothing is asked: to be teacher-forced only."""
    told = world.filler(rng, tokens)
    cut = max(1, len(told) * 3 // 4)
    return Scene(" ".join(told[:cut]), (Turn("", " " + " ".join(told[cut:])),))


GENERATORS: dict[str, Task] = {**TASKS, "prose": prose}


@dataclass(frozen=True)
class Item:
    """One question about one text. A chat item puts context and question into one message of the user."""

    task: str
    form: str  # completion or chat
    length: int  # tokens of prompt and answer together, about
    number: int
    context: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return self.context + self.question

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]


def world() -> World:
    """Held-out prose, measured with the embedded model's tokenizer; takes a second."""
    return World(Tokenizer.from_file(str(MINI / "tokenizer.json")), held_out=True)


def draw(world: World, task: str, form: str, length: int, number: int, seed: int = 0) -> Item:
    """The item with this number; equal arguments give equal items. Raises ValueError if the task has no such form."""
    scene = GENERATORS[task](Random(f"evals/{seed}/{task}/{length}/{number}"), world, length, 1)
    [turn] = scene.turns
    if form == "completion":
        return Item(task, form, length, number, scene.context, turn.ask, turn.reply)
    if not scene.has_chat:
        raise ValueError(f"task {task!r} has no chat form; allowed: completion")
    return Item(task, form, length, number, scene.context, f" {turn.chat_ask}", turn.chat_reply)


def drawn(world: World, task: str, form: str, length: int, count: int, seed: int = 0) -> Iterator[Item]:
    return (draw(world, task, form, length, number, seed) for number in range(count))

"""A scene is a text with questions about it; it can be told as a completion or as a chat."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random

from models.tasks import prose
from models.tasks.tokens import ASSISTANT, BOS, EOS, USER, encode

FORMS = ("completion", "chat")
_SYSTEM = ("You are a helpful assistant.", "Answer the question.", "You answer questions about a text.")
_BREAKS = (" ", "\n", "\n\n")

Part = tuple[str, bool]  # a piece of text, and whether the model has to produce it


@dataclass(frozen=True)
class Turn:
    """One question and its answer, in both forms."""

    ask: str
    reply: str
    chat_ask: str = ""
    chat_reply: str = ""
    lead: str = ""  # how the answer begins, given with the question: what is left to say is `reply`


@dataclass(frozen=True)
class Scene:
    """``context`` holds the answer to each turn. ``facts`` are the texts it must hold exactly once."""

    context: str
    turns: tuple[Turn, ...] = ()
    facts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for fact in self.facts:
            assert self.context.count(fact) == 1, f"not answerable: {fact!r}"

    @property
    def has_chat(self) -> bool:
        return all(turn.chat_ask for turn in self.turns) and bool(self.turns)

    def completion(self) -> list[Part]:
        parts = [(BOS + self.context, False)]
        for turn in self.turns:
            parts += [(turn.ask, False), (turn.reply, True)]
        return parts

    def chat(self, rng: Random | None = None) -> list[Part]:
        """The turns as a conversation; ``rng`` varies the break before the question and adds a system text at times."""
        gap = rng.choice(_BREAKS) if rng else " "
        system = rng.choice(_SYSTEM) + "\n" if rng and rng.random() < 0.1 else ""
        before = BOS + USER + system + self.context + gap
        parts = []
        for turn in self.turns:
            parts += [(before + turn.chat_ask + ASSISTANT, False), (turn.chat_reply + EOS, True)]
            before = USER
        return parts

    def told(self, form: str, rng: Random | None = None) -> list[Part]:
        return self.chat(rng) if form == "chat" else self.completion()


class Haystack(ABC):
    """Sentences in document order that facts are put between."""

    def __init__(self, sentences: tuple[str, ...]) -> None:
        self.sentences = sentences
        self.sizes = [self.size(" " + sentence) for sentence in sentences]

    @abstractmethod
    def size(self, text: str) -> int:
        """Length of `text` in tokens."""

    def filler(self, rng: Random, tokens: int) -> list[str]:
        """Sentences in document order, of at most ``tokens`` tokens in all and nearly as many."""
        chosen, at, skipped = [], rng.randrange(len(self.sentences)), 0
        while skipped < 40 and tokens > 5:
            if self.sizes[at] <= tokens:
                chosen.append(self.sentences[at])
                tokens -= self.sizes[at]
            else:
                skipped += 1
            at = (at + 1) % len(self.sentences)
        return chosen

    def weave(self, rng: Random, facts: list[str], tokens: int) -> str:
        """``facts`` in their order, at random places between sentences, together about ``tokens`` tokens."""
        room = tokens - sum(self.size(" " + fact) for fact in facts)
        sentences = self.filler(rng, max(room, 0))
        places = sorted(rng.randrange(len(sentences) + 1) for _ in facts)
        for fact, place in reversed(list(zip(facts, places, strict=True))):
            sentences.insert(place, fact)
        return " ".join(sentences)


class World(Haystack):
    """What the embedded model's tasks are made from: a tokenizer to measure with, prose from one side of the split."""

    def __init__(self, tokenizer: object, held_out: bool = True) -> None:
        self.tokenizer, self.held_out = tokenizer, held_out
        super().__init__(prose.sentences(held_out))

    def size(self, text: str) -> int:
        return len(encode(self.tokenizer, text))


def tokens_of(tokenizer, parts: list[Part]) -> tuple[list[int], list[bool]]:
    """Token ids of a told scene and, for each, whether it belongs to an answer."""
    ids: list[int] = []
    answers: list[bool] = []
    for text, is_answer in parts:
        piece = encode(tokenizer, text)
        ids += piece
        answers += [is_answer] * len(piece)
    whole = "".join(text for text, _ in parts)
    assert encode(tokenizer, whole) == ids, f"token borders differ: {whole[-200:]!r}"
    return ids, answers

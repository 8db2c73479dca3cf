"""RULER's families of tasks (arXiv:2404.06654, section 3), in essays: questions that instruct models understand.

The answer's beginning is given with the question, as RULER does, so that a model says what was asked for and not how
it would go about it. Needles are asked for in other words too (`WORDINGS`), since which tokens a policy looks at
depends on them. `essay` asks nothing: the text's own continuation is what is judged, teacher-forced.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from string import ascii_uppercase

from models.tasks.facts import key_pairs
from models.tasks.scene import Haystack, Scene, Turn
from models.tasks.words import ADJECTIVES, NOUNS

Asked = Callable[[Random, Haystack, int], Scene]
RESERVE = 24  # tokens for the chat template, and for the words around the text
KEYS, VALUES = 4, 4
"""Needles beside each other in the tasks with several, as in RULER's set-up."""
HOPS = 4
"""Variables that get their value from another one."""
COMMON, COMMON_TIMES, OTHER_TIMES = 10, 12, 2
"""Words that are asked for, how often each of them stands in the list, and how often each of the others."""


@dataclass(frozen=True)
class Wording:
    """How needles are told and asked for. {key} is what a value is looked up by.

    lead: how the answer begins; empty where that is not given.
    """

    fact: str
    ask: str
    asks_all: str  # of a key with several values
    lead: str = ""
    leads_all: str = ""


_MAGIC = Wording(
    fact="One of the special magic numbers for {key} is: {value}.",
    ask="What is the special magic number for {key} mentioned in the text above?",
    asks_all="What are all the special magic numbers for {key} mentioned in the text above?",
)
WORDINGS: Mapping[str, Wording] = {
    "begun": replace(
        _MAGIC,
        lead="The special magic number for {key} mentioned in the text above is",
        leads_all="The special magic numbers for {key} mentioned in the text above are",
    ),
    "asked": _MAGIC,
    "pass key": Wording(
        fact="The pass key for {key} is {value}. Remember it.",
        ask="What is the pass key for {key}? Answer with the number only.",
        asks_all="What are all the pass keys for {key}? Answer with the numbers only.",
    ),
}
"""RULER's, the same without the answer's beginning, and that of the pass key tests. Items take turns."""
NEEDLES: Mapping[str, tuple[int, int]] = {
    "niah_single": (1, 1),
    "niah_multikey": (KEYS, 1),
    "niah_multivalue": (1, VALUES),
}
"""Keys in the text, and values of each; one key is asked for, its values in any order."""


def wording_of(task: str, number: int) -> str:
    """The name of the wording of an item; empty where a task has one only."""
    return list(WORDINGS)[number % len(WORDINGS)] if task in NEEDLES else ""


def needles(rng: Random, haystack: Haystack, tokens: int, task: str, wording: Wording) -> Scene:
    """Keys of two words, each with numbers of seven digits."""
    keys, values = NEEDLES[task]
    names = key_pairs(rng, keys)
    numbers = [str(number) for number in rng.sample(range(10**6, 10**7), keys * values)]
    told = list(zip(names * values, numbers, strict=True))
    rng.shuffle(told)
    facts = [wording.fact.format(key=key, value=value) for key, value in told]
    found = [value for key, value in told if key == names[0]]
    wanted = [fact for fact, (key, _) in zip(facts, told, strict=True) if key == names[0]]
    ask, lead = (wording.ask, wording.lead) if values == 1 else (wording.asks_all, wording.leads_all)
    return _woven(
        rng, haystack, tokens, facts, _turn(ask.format(key=names[0]), lead.format(key=names[0]), found), wanted
    )


def variable_tracking(rng: Random, haystack: Haystack, tokens: int) -> Scene:
    """A variable gets a number, four others get it one from the other; all five are asked for."""
    names = ["".join(rng.sample(ascii_uppercase, 5)) for _ in range(HOPS + 1)]
    number = str(rng.randrange(10**4, 10**5))
    values = [number, *(f"VAR {name}" for name in names)]
    facts = [f"VAR {name} = {value}." for name, value in zip(names, values, strict=False)]
    turn = _turn(
        f"Find all variables that are assigned the value {number} in the text above.",
        f"The {len(names)} variables that are assigned the value {number} are:",
        names,
    )
    return _woven(rng, haystack, tokens, facts, turn, facts)


def common_words(rng: Random, haystack: Haystack, tokens: int) -> Scene:
    """A numbered list of words; the ten that stand in it most often are asked for."""
    words = rng.sample(ADJECTIVES + NOUNS, len(ADJECTIVES + NOUNS))
    common, others = words[:COMMON], words[COMMON:]
    turn = _turn(
        "What are the 10 most common words in the list above?", "The 10 most common words in the list are:", common
    )
    room = _room(haystack, tokens, turn)
    cost = haystack.size("12. word")
    rare = max(COMMON, min(len(others), (room // cost - COMMON * COMMON_TIMES) // OTHER_TIMES))
    told = common * COMMON_TIMES + others[:rare] * OTHER_TIMES
    rng.shuffle(told)
    return Scene(" ".join(f"{i}. {word}" for i, word in enumerate(told, 1)), (turn,))


def essay(rng: Random, haystack: Haystack, tokens: int) -> Scene:
    """Sentences in their order; the last eighth is what is to follow. To be teacher-forced only."""
    return to_go_on(rng, haystack, tokens, eighths=7)


def to_go_on(rng: Random, haystack: Haystack, tokens: int, eighths: int) -> Scene:
    """Sentences in their order, of which so many eighths are told; the rest is what is to follow."""
    told = haystack.filler(rng, tokens)
    cut = max(1, len(told) * eighths // 8)
    return Scene(" ".join(told[:cut]), (Turn("", " " + " ".join(told[cut:])),))


OTHERS: dict[str, Asked] = {task.__name__: task for task in (variable_tracking, common_words, essay)}
RULER = (*NEEDLES, *OTHERS)


def scene(rng: Random, haystack: Haystack, task: str, tokens: int, number: int) -> Scene:
    """Of the item with this number of one of RULER's tasks."""
    if task in NEEDLES:
        return needles(rng, haystack, tokens, task, WORDINGS[wording_of(task, number)])
    return OTHERS[task](rng, haystack, tokens)


SEPARATOR = ", "


def _turn(ask: str, lead: str, values: list[str]) -> Turn:
    """One question in both forms; the answer names `values`."""
    reply = " " + SEPARATOR.join(values)
    return Turn(f"\n\n{ask} {lead}".rstrip(), reply, ask, reply, lead)


def _woven(rng: Random, haystack: Haystack, tokens: int, facts: list[str], turn: Turn, asked_for: list[str]) -> Scene:
    """Facts among the sentences, and one question about some of them."""
    return Scene(haystack.weave(rng, facts, _room(haystack, tokens, turn)), (turn,), tuple(asked_for))


def _room(haystack: Haystack, tokens: int, turn: Turn) -> int:
    """Tokens that the text may have beside the question and the answer."""
    return tokens - haystack.size(turn.ask + turn.reply) - RESERVE

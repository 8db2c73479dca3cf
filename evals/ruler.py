"""RULER's families of tasks (arXiv:2404.06654, section 3), in essays: questions that instruct models understand.

The answer's beginning is given with the question, as RULER does, so that a model says what was asked for and not how
it would go about it. `essay` asks nothing: the text's own continuation is what is judged, teacher-forced.
"""

from collections.abc import Callable
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


def niah_single(rng: Random, haystack: Haystack, tokens: int) -> Scene:
    """One needle: a key of two words and a number of seven digits."""
    return _needles(rng, haystack, tokens, keys=1, values=1)


def niah_multikey(rng: Random, haystack: Haystack, tokens: int) -> Scene:
    """Four needles with keys of their own; one is asked for."""
    return _needles(rng, haystack, tokens, keys=KEYS, values=1)


def niah_multivalue(rng: Random, haystack: Haystack, tokens: int) -> Scene:
    """Four needles with one key; all four numbers are asked for, in any order."""
    return _needles(rng, haystack, tokens, keys=1, values=VALUES)


def _needles(rng: Random, haystack: Haystack, tokens: int, keys: int, values: int) -> Scene:
    names = key_pairs(rng, keys)
    numbers = [str(number) for number in rng.sample(range(10**6, 10**7), keys * values)]
    facts = [f"One of the special magic numbers for {name} is: {numbers.pop()}." for name in names * values]
    rng.shuffle(facts)
    wanted = [fact for fact in facts if f"for {names[0]} is" in fact]
    found = [fact.rpartition(" ")[2].rstrip(".") for fact in wanted]
    verb, all_the, what = ("are", "all the", "numbers") if values > 1 else ("is", "the", "number")
    place = f"for {names[0]} mentioned in the text above"
    turn = _turn(
        f"What {verb} {all_the} special magic {what} {place}?", f"The special magic {what} {place} {verb}", found
    )
    return _woven(rng, haystack, tokens, facts, turn, wanted)


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


RULER: dict[str, Asked] = {
    task.__name__: task
    for task in (niah_single, niah_multikey, niah_multivalue, variable_tracking, common_words, essay)
}
SEPARATOR = ", "


def _turn(ask: str, lead: str, values: list[str]) -> Turn:
    """One question in both forms; the answer names `values`."""
    reply = " " + SEPARATOR.join(values)
    return Turn(f"\n\n{ask} {lead}", reply, ask, reply, lead)


def _woven(rng: Random, haystack: Haystack, tokens: int, facts: list[str], turn: Turn, asked_for: list[str]) -> Scene:
    """Facts among the sentences, and one question about some of them."""
    return Scene(haystack.weave(rng, facts, _room(haystack, tokens, turn)), (turn,), tuple(asked_for))


def _room(haystack: Haystack, tokens: int, turn: Turn) -> int:
    """Tokens that the text may have beside the question and the answer."""
    return tokens - haystack.size(turn.ask + turn.reply) - RESERVE

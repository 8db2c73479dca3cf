"""The pieces that tasks put into a text: keys, values, chains of variables, and the questions about them."""

from random import Random
from string import ascii_lowercase

from models.tasks.scene import Turn, World
from models.tasks.words import ADJECTIVES, NOUNS

NAMES = [letter + str(digit) for letter in ascii_lowercase for digit in range(10)]


def key_pairs(rng: Random, count: int) -> list[str]:
    """Different keys of an adjective and a noun each."""
    numbers = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[n % len(ADJECTIVES)]} {NOUNS[n // len(ADJECTIVES)]}" for n in numbers]


def free_keys(rng: Random, world: World, count: int) -> list[str]:
    """Different keys of one to three words of one sentence each."""
    keys: set[str] = set()
    while len(keys) < count:
        sentence = world.sentences[rng.randrange(len(world.sentences))]
        words = [word for word in sentence.split() if word.isalpha() and word.islower() and len(word) > 3]
        keys.add(" ".join(rng.sample(words, min(len(words), rng.randint(1, 3)))))
        keys.discard("")
    return rng.sample(sorted(keys), count)


def digits(rng: Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def code_turn(key: str, code: int) -> Turn:
    return Turn(
        f"\nQuestion: The code for {key} is",
        f" {code}.",
        f"What is the code for {key}?",
        f"The code for {key} is {code}.",
    )


def alias_chain(rng: Random, names: list[str]) -> tuple[list[str], list[str]]:
    """Facts from the value to the last name, and the trace from the last name back to the value."""
    trace = [digits(rng, 3), *names]
    facts = [f"{name} = {source}." for source, name in zip(trace, names, strict=False)]
    return facts, trace[::-1]


def trace_turn(trace: list[str]) -> Turn:
    hops = " = ".join(trace[1:])
    return Turn(f"\nTrace: {trace[0]} =", f" {hops}.", f"Trace {trace[0]}.", f"Trace: {trace[0]} = {hops}.")


def interleave(rng: Random, stories: list[list[str]]) -> list[str]:
    """Interleave the stories at random; each keeps its own order."""
    order = [i for i, story in enumerate(stories) for _ in story]
    rng.shuffle(order)
    rest = [iter(story) for story in stories]
    return [next(rest[i]) for i in order]

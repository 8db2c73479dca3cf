"""The tasks: each generator makes a scene of at most ``tokens`` tokens, told in either form, with a few questions.

Look-ups that a small model can learn have one thing in common: the token to be produced follows an n-gram of one to
three tokens that also stands before it at the source. The wording below keeps to that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from models.tasks.facts import NAMES, alias_chain, code_turn, digits, free_keys, interleave, key_pairs, trace_turn
from models.tasks.scene import FORMS, Scene, Turn, World
from models.tasks.words import KEY_WORDS, NOUNS

_RESERVE = 8  # tokens for <bos>, role markers, and a system text
Task = Callable[[Random, World, int, int], Scene]


def niah(rng: Random, world: World, tokens: int, turns: int = 6, needles: int = 0, free: bool = False) -> Scene:
    """Needles in a haystack: ``The code for amber otter is 4821.`` among prose; the question names one key.

    ``free`` keys are one to three words of the prose instead of two key words. ``needles=0`` draws their number.
    """
    count = needles or rng.randint(2, max(2, min(40, tokens // 40)))
    keys = free_keys(rng, world, count) if free else key_pairs(rng, count)
    codes = rng.sample(range(1000, 10000), count)
    facts = [f"The code for {key} is {code}." for key, code in zip(keys, codes, strict=True)]
    asked = rng.sample(range(count), min(turns, count, max(1, tokens // 60)))
    made = tuple(code_turn(keys[i], codes[i]) for i in asked)
    context = world.weave(rng, facts, tokens - _cost(world, made))
    return Scene(context, made, tuple(facts[i] for i in asked))


def niah_free(rng: Random, world: World, tokens: int, turns: int = 6) -> Scene:
    """``niah`` with keys of any words, of several tokens each."""
    return niah(rng, world, tokens, turns, free=True)


def mqar(rng: Random, world: World, tokens: int, turns: int = 64) -> Scene:
    """Multi-query recall: ``amber otter = 482;`` dense or among prose; many keys are asked for."""
    share = rng.uniform(0.3, 0.65)
    count = max(2, min(64, int(tokens * share / 7)))
    keys, values = key_pairs(rng, count), [digits(rng, 3) for _ in range(count)]
    facts = [f"{key} = {value};" for key, value in zip(keys, values, strict=True)]
    asked = rng.sample(range(count), min(turns, count, max(1, (tokens - 7 * count) // 7 - 3)))
    room = tokens - 7 * len(asked) - _RESERVE - 4
    context = world.weave(rng, facts, room if rng.random() < 0.5 else 0)
    made = [Turn(f" {keys[i]} =", f" {values[i]};") for i in asked]
    made[0] = Turn("\nQuery:" + made[0].ask, made[0].reply)
    return Scene(context, tuple(made), tuple(facts[i] for i in asked))


def vt(rng: Random, world: World, tokens: int, turns: int = 4) -> Scene:
    """Variable tracing: ``x7 = 482. y3 = x7.``; the answer spells the chain out, so that each hop is one look-up."""
    chains = rng.randint(2, max(2, min(12, tokens // 64)))
    hops = [rng.randint(1, 4) for _ in range(chains)]
    names = rng.sample(NAMES, sum(hops) + chains)
    stories = [alias_chain(rng, [names.pop() for _ in range(hop + 1)]) for hop in hops]
    facts = interleave(rng, [facts for facts, _ in stories])
    asked = rng.sample(stories, min(turns, chains, max(1, tokens // 100)))
    made = tuple(trace_turn(trace) for _, trace in asked)
    context = world.weave(rng, facts, tokens - _cost(world, made))
    return Scene(context, made, tuple(fact for facts, _ in asked for fact in facts))


def quote(rng: Random, world: World, tokens: int, turns: int = 6) -> Scene:
    """Numbered lines of key words; one is to be repeated. Every token of the answer is a look-up of its own."""
    asked = max(1, min(turns, tokens // 80))
    room = tokens - 20 * asked - _RESERVE
    count = max(2, min(90, room // rng.randint(11, 14)))
    numbers = sorted(rng.sample(range(10, 100), count))
    lines = {n: " ".join(rng.choices(KEY_WORDS, k=rng.randint(3, 8))) for n in numbers}
    facts = [f"Line {n}: {words}." for n, words in lines.items()]
    text = "\n".join(facts)
    before = " ".join(world.filler(rng, max(0, room - world.size(text) - 1)))
    chosen = rng.sample(numbers, asked)
    made = [Turn(f"\nRepeat line {n}:", f" {lines[n]}.", f"Repeat line {n}.", f"Line {n}: {lines[n]}.") for n in chosen]
    return Scene(before + "\n" + text, tuple(made), tuple(f"Line {n}: {lines[n]}." for n in chosen))


def copy(rng: Random, world: World, tokens: int, turns: int = 1) -> Scene:
    """Repeat the whole context: random words or prose. It trains the matching heads on any text."""
    room = (tokens - _RESERVE) // 2 - 2
    words = world.filler(rng, room) if rng.random() < 0.5 else rng.choices(KEY_WORDS, k=room)
    text = " ".join(words)
    return Scene(" " + text, (Turn("\nAgain:", " " + text),))


def chain(rng: Random, world: World, tokens: int, turns: int = 1) -> Scene:
    """A program of calls and its long report: ``heron calls otter; otter has lemon; heron has lemon.``

    The prompt gives the first few things only. Every later line needs a thing that the report itself told many lines
    earlier: each name is called once, and of the names not yet called one of the older half.
    """
    count = max(3, min(88, (tokens - 24 - _RESERVE) // 27))
    roots, first = max(2, min(16, count // 4)), rng.randint(10, 99 - count)
    names = rng.sample(NOUNS, count + roots)
    values = {name: names.pop() for name in names[:roots]}
    program = [f"{name} has {value}" for name, value in values.items()]
    report, uncalled = list(program), names[:roots]
    for name in names[roots:]:
        source = uncalled.pop(rng.randrange((len(uncalled) + 1) // 2))
        values[name] = values[source]
        uncalled.append(name)
        program.append(f"{name} calls {source}")
        report.append(f"{name} calls {source}; {source} has {values[source]}; {name} has {values[name]}")
    told, facts = _numbered(first, [*report, "stop"]), _numbered(first, [*program, "stop"])
    turn = Turn("\nRun the program.", "\n" + "\n".join(told), "Run the program.", "\n".join(told))
    room = tokens - 27 * count - 24 - _RESERVE
    before = " ".join(world.filler(rng, room)) + "\n" if room > 40 else ""
    return Scene(before + "\n".join(facts), (turn,), tuple(facts))


def _numbered(first: int, lines: list[str]) -> list[str]:
    return [f"Step {first + i}: {line}." for i, line in enumerate(lines)]


def lm(rng: Random, world: World, tokens: int, turns: int = 0) -> Scene:
    """Plain prose."""
    return Scene(" ".join(world.filler(rng, tokens - _RESERVE)))


TASKS: dict[str, Task] = {task.__name__: task for task in (niah, niah_free, mqar, vt, quote, copy, chain, lm)}


@dataclass(frozen=True)
class RetrievalItem:
    """A prompt whose answer is a four-digit code.

    ``text`` is a completion prompt (without ``<bos>``: the tokenizer adds it) or, in chat form, the user's message.
    ``reply`` is all that the model should produce; ``answer`` is the code alone. ``depth`` is its place, 0 to 1.
    """

    form: str
    text: str
    key: str
    answer: str
    reply: str
    depth: float

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.text}]


def retrieval_prompt(tokenizer, seed: int, tokens: int, needles: int = 8, form: str = "chat") -> RetrievalItem:
    """A prompt of about ``tokens`` tokens in held-out prose; equal arguments give equal prompts. Needs no torch."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    if tokens < 30 * needles:
        raise ValueError(f"tokens must be at least 30 for each of {needles} needles, got {tokens}")
    scene = niah(Random(f"retrieval/{seed}"), _held_out(tokenizer), tokens + 20, turns=1, needles=needles)
    turn, fact = scene.turns[0], scene.facts[0]
    depth = scene.context.index(fact) / len(scene.context)
    key, code = fact.removeprefix("The code for ").removesuffix(".").split(" is ")
    if form == "chat":
        return RetrievalItem(form, f"{scene.context} {turn.chat_ask}", key, code, turn.chat_reply, depth)
    return RetrievalItem(form, scene.context + turn.ask, key, code, turn.reply, depth)


@lru_cache(maxsize=2)
def _held_out(tokenizer) -> World:
    return World(tokenizer, held_out=True)


def _cost(world: World, turns: tuple[Turn, ...]) -> int:
    """Tokens that the turns need in their longer form, the chat."""
    return sum(world.size(turn.chat_ask + turn.chat_reply) + 3 for turn in turns) + _RESERVE

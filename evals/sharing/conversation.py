"""A conversation that is compressed with every turn: what each turn holds, how soon it begins, and what it still knows.

Each turn tells a fact in some sentences of essays and asks for one of an earlier turn. All ways are told the same
history, with the answers that `full` gave, so that they can be compared turn by turn.
"""

import time
from random import Random
from typing import Any, NamedTuple

from openai import AsyncOpenAI

from evals.essays import essays
from evals.ruler import WORDINGS
from evals.scorers import score
from evals.sharing.asking import Given, ask
from models.tasks.facts import key_pairs

ROOM = 24
"""Tokens of an answer, at most."""
WORDING = WORDINGS["pass key"]


class ConversationTurn(NamedTuple):
    told: str  # what the user says
    answer: str  # what is right


def turns(count: int, tokens: int, number: int) -> list[ConversationTurn]:
    """What the user says in a conversation of so many turns, each of about `tokens` tokens."""
    rng = Random(f"sharing/{number}/{count}/{tokens}")
    keys = key_pairs(rng, count)
    numbers = [str(value) for value in rng.sample(range(10**6, 10**7), count)]
    made = []
    for i, (key, value) in enumerate(zip(keys, numbers, strict=True)):
        asked = rng.randrange(max(0, i - 8), i + 1)
        text = essays().weave(rng, [WORDING.fact.format(key=key, value=value)], tokens)
        made.append(ConversationTurn(f"{text}\n\n{WORDING.ask.format(key=keys[asked])}", numbers[asked]))
    return made


async def had(
    url: str, said: list[ConversationTurn], policy: dict[str, Any], history: list[str] | None
) -> list[tuple[Given, float]]:
    """Each turn's answer, and whether it is right; history: the assistant's answers, its own if None."""
    salt, messages, found = f"{policy} {time.time_ns()}", list[dict[str, str]](), []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=3600, max_retries=0) as client:
        for i, turn in enumerate(said):
            messages.append({"role": "user", "content": turn.told})
            begun = policy["name"] == "full" or i == 0  # nothing stands before the first message
            given = await ask(client, messages, {"name": "full"} if begun else policy, salt, ROOM)
            found.append((given, score("niah_single", given.text, turn.answer)))
            messages.append({"role": "assistant", "content": history[i] if history else given.text})
    return found

"""A conversation that is compressed with every turn: what each turn holds, how soon it begins, and what it still knows.

Each turn tells a fact in some sentences of essays. After every few turns, questions about facts of all turns so far are
asked, each as if it were the next turn; the conversation goes on without them. All ways are told the answers that
`full` gave, so that they can be compared turn by turn.
"""

import time
from random import Random
from typing import Any, NamedTuple

from openai import AsyncOpenAI

from evals.essays import essays
from evals.ruler import WORDINGS
from evals.scorers import score
from evals.sharing.asking import SharingAnswer, ask
from models.tasks.facts import key_pairs

ROOM = 24
"""Tokens of an answer, at most."""
PROBES = 5
"""Questions at a time."""
WORDING = WORDINGS["pass key"]
GO_ON = "Write the sentence that comes next."


class ConversationTurn(NamedTuple):
    told: str  # what the user says
    ask: str  # what asks for its fact
    answer: str


class TurnFound(NamedTuple):
    """What a turn came to; rights: of the questions behind it, none where none were asked."""

    given: SharingAnswer
    rights: list[float]


def turns(count: int, tokens: int, number: int) -> list[ConversationTurn]:
    """What the user says in a conversation of so many turns, each of about `tokens` tokens."""
    rng = Random(f"sharing/{number}/{count}/{tokens}")
    keys = key_pairs(rng, count)
    numbers = [str(value) for value in rng.sample(range(10**6, 10**7), count)]
    made = []
    for key, value in zip(keys, numbers, strict=True):
        text = essays().weave(rng, [WORDING.fact.format(key=key, value=value)], tokens)
        made.append(ConversationTurn(f"{text}\n\n{GO_ON}", WORDING.ask.format(key=key), value))
    return made


def probed(said: list[ConversationTurn], number: int) -> list[ConversationTurn]:
    """Whose facts are asked for behind the last of these turns."""
    return Random(f"probes/{number}/{len(said)}").sample(said, min(PROBES, len(said)))


async def had(
    url: str, said: list[ConversationTurn], policy: dict[str, Any], history: list[str] | None, every: int, number: int
) -> list[TurnFound]:
    """Each turn; history: the assistant's answers, its own if None. Questions are asked after `every` turns."""
    salt, messages, found = f"{policy} {time.time_ns()}", list[dict[str, str]](), []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=3600, max_retries=0) as client:
        for i, turn in enumerate(said):
            messages.append({"role": "user", "content": turn.told})
            begun = {"name": "full"} if i == 0 else policy  # nothing stands before the first message
            given = await ask(client, messages, begun, salt, ROOM)
            messages.append({"role": "assistant", "content": history[i] if history else given.text})
            rights = []
            for probe in probed(said[: i + 1], number) if (i + 1) % every == 0 else ():
                asked = [*messages, {"role": "user", "content": probe.ask}]
                answer = await ask(client, asked, policy, salt, ROOM)
                rights.append(score("niah_single", answer.text, probe.answer))
            found.append(TurnFound(given, rights))
    return found

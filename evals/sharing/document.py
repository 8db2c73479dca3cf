"""Many questions about one document, in a pool for one and a half of it.

Needles of which each question asks for one are hidden in essays. The first question is asked alone and leaves what
later ones can begin with; the others follow all at once.
"""

import asyncio
import time
from random import Random
from statistics import fmean, median
from typing import Any

from openai import AsyncOpenAI

from evals.endpoint import Endpoint, Sized
from evals.essays import essays
from evals.items import Item
from evals.ruler import WORDINGS
from evals.scorers import score
from evals.sharing.asking import ask, watching
from models.tasks.facts import key_pairs

TASK = "niah_multikey"


def questions(tokens: int, count: int, seed: int = 0) -> list[Item]:
    """One document of about so many tokens with `count` needles, and a question about each."""
    rng, wording = Random(f"sharing/{seed}/{tokens}/{count}"), WORDINGS["begun"]
    keys = key_pairs(rng, count)
    numbers = [str(number) for number in rng.sample(range(10**6, 10**7), count)]
    facts = [wording.fact.format(key=key, value=value) for key, value in zip(keys, numbers, strict=True)]
    text = essays().weave(rng, facts, tokens)
    return [
        Item(
            TASK,
            "chat",
            tokens,
            i,
            text,
            f"\n\n{wording.ask.format(key=key)}",
            f" {number}",
            wording.lead.format(key=key),
        )
        for i, (key, number) in enumerate(zip(keys, numbers, strict=True))
    ]


async def measured(url: str, items: list[Item], policy: dict[str, Any]) -> dict[str, float]:
    """All questions under a policy, which is told where the document ends."""
    endpoint = Endpoint(url, "")
    endpoint.model = await endpoint.served()
    sized = [await endpoint.sized(item) for item in items]
    await endpoint.close()
    salt = f"{policy} {time.time_ns()}"
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=3600, max_retries=0) as client:

        async def answer(one: Sized) -> Any:
            placed = policy if policy["name"] == "full" else {**policy, "at": one.context}
            return await ask(client, one.item.messages, placed, salt, one.room)

        async with watching(url) as making:
            first = await answer(sized[0])
        async with watching(url) as seen:
            start = time.perf_counter()
            rest = await asyncio.gather(*map(answer, sized[1:]))
            seconds = time.perf_counter() - start
    rights = [score(TASK, given.text, item.answer) for item, given in zip(items, [first, *rest], strict=True)]
    return {
        "right": fmean(rights),
        "first_s": first.whole,
        "rest_s": seconds,
        "question_s": seconds / len(rest),
        "ttft_p50_s": median(given.first for given in rest),
        "pool_first": making.pool,
        "pool": seen.pool,
        "running": seen.running,
        "cached": median(given.cached for given in rest),
    }

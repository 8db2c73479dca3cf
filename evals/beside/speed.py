"""Generated tokens per second of both sides, taking turns."""

import asyncio
import time
from typing import Any

from openai import AsyncOpenAI
from tqdm import tqdm

from evals import items
from evals.beside.pairs import PAIRS, SAME, Pair, kept
from evals.beside.partner import Pool
from evals.cells import FULL
from evals.endpoint import Endpoint, Sized
from evals.protocols import kv_policy

PROMPTS, AT_ONCE, NEW = 4, 16, 64
"""Prompts that are answered one by one; as many at once; tokens of each answer."""
BUDGET = 0.25
LENGTHS = {512: None, 2000: (FULL, "snapkv")}
"""Tokens of a prompt, and who is timed with it; None: all."""
FULL_PAIR = Pair(SAME, {"name": FULL}, {})


class Speed:
    """Times both sides; kvpress by its own pipeline, kvserve by a client of its server."""

    def __init__(self, url: str, endpoint: Endpoint, partner: Pool, cards: dict[str, Any]) -> None:
        self._client = AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=600)
        self._endpoint, self._partner, self._cards = endpoint, partner, cards

    async def run(self, repeats: int) -> list[dict[str, Any]]:
        """One record per policy, length and repetition: tokens per second of each side, alone and at once."""
        plan = [
            (length, pair) for length, names in LENGTHS.items() for pair in timed() if not names or pair.policy in names
        ]
        world, made = items.world(), []
        await self._warm(world, plan)
        for repeat in tqdm(range(repeats), unit="repetition"):
            for length, pair in plan:
                prompts = await self._prompts(world, length, repeat)
                sides = [self._theirs, self._ours, self._at_once]
                found = {}
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    tokens, seconds = await side(pair, prompts)
                    found[side.__name__.strip("_")] = tokens / seconds
                made.append({"policy": pair.policy, "length": length, "repeat": repeat, **found})
        await self._client.close()
        return made

    async def _warm(self, world: Any, plan: list[tuple[int, Pair]]) -> None:
        for length, pair in plan:
            prompts = (await self._prompts(world, length, -1))[:1]
            await self._theirs(pair, prompts)
            await self._ours(pair, prompts)

    async def _prompts(self, world: Any, length: int, repeat: int) -> list[Sized]:
        """Others in each repetition; `AT_ONCE` of them."""
        drawn = [items.draw(world, "niah", "completion", length, 10_000 + AT_ONCE * repeat + n) for n in range(AT_ONCE)]
        return [await self._endpoint.sized(item) for item in drawn]

    async def _theirs(self, pair: Pair, prompts: list[Sized]) -> tuple[int, float]:
        some = prompts[:PROMPTS]
        act = [each.context for each in some]
        seconds = await self._partner.ask(
            "timed",
            prompts=[each.prompt for each in some],
            act=act,
            new=NEW,
            theirs=pair.theirs or None,
            budget=[kept(BUDGET, read) for read in act],
        )
        return NEW * len(some), float(seconds)

    async def _ours(self, pair: Pair, prompts: list[Sized]) -> tuple[int, float]:
        """One by one."""
        start = time.perf_counter()
        tokens = [await self._generate(pair, each) for each in prompts[:PROMPTS]]
        return sum(tokens), time.perf_counter() - start

    async def _at_once(self, pair: Pair, prompts: list[Sized]) -> tuple[int, float]:
        start = time.perf_counter()
        tokens = await asyncio.gather(*(self._generate(pair, each) for each in prompts))
        return sum(tokens), time.perf_counter() - start

    async def _generate(self, pair: Pair, sized: Sized) -> int:
        """Tokens generated. A salt of its own keeps a request from finding its prompt in the prefix cache."""
        policy: Any = FULL
        if pair.policy != FULL:
            known = self._cards[pair.policy]["parameters"]["properties"]
            policy = kv_policy("after", pair.ours, known, kept(BUDGET, sized.context), sized.sizes)
        extra = {"kv_policy": policy, "ignore_eos": True, "cache_salt": str(time.perf_counter_ns())}
        done = await self._client.completions.create(
            model=self._endpoint.model, prompt=sized.prompt, max_tokens=NEW, temperature=0, extra_body=extra
        )
        assert done.usage is not None
        return done.usage.completion_tokens


def timed() -> list[Pair]:
    """The full cache, and each policy once; pyramidkv not, since kvpress' pipeline fails with uneven layers."""
    left_out = ("pyramidkv", "random")
    found = {pair.policy: pair for pair in PAIRS if pair.kind == SAME and not pair.once and pair.policy not in left_out}
    return [FULL_PAIR, *found.values()]

"""All requests of a turn at once, streamed."""

import asyncio
import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any, NamedTuple, cast

import numpy as np
from openai import AsyncOpenAI

from evals.endpoint import continued, said, streamed
from evals.items import Item
from evals.scorers import score


class TimedAnswer(NamedTuple):
    """One request's: seconds from when it was sent; kept: share of its cache, 1 if it was not compressed."""

    text: str
    tokens: int
    first: float
    whole: float
    kept: float


class LoadTurn(NamedTuple):
    """A turn under one policy."""

    answers: Sequence[TimedAnswer]
    rights: Sequence[float]
    seconds: float  # from the first request to the last token

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def quantities(self) -> dict[str, float]:
        firsts = [answer.first for answer in self.answers]
        return {
            "right": fmean(self.rights),
            "kept": fmean(answer.kept for answer in self.answers),
            "tokens_per_s": self.tokens_per_s,
            "right_per_min": 60 * sum(self.rights) / self.seconds,
            "ttft_p50_s": median(firsts),
            "ttft_p99_s": float(np.percentile(firsts, 99)),
            "whole_p50_s": median(answer.whole for answer in self.answers),
        }


async def asked(url: str, items: Sequence[Item], policy: str, tokens: int) -> LoadTurn:
    """Send all items at once and read the answers to their end, so many tokens each."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=3600, max_retries=0) as client:
        model = (await client.models.list()).data[0].id
        salt = f"{policy} {time.time_ns()}"  # no prompt is found in the prefix cache
        start = time.perf_counter()
        answers = await asyncio.gather(*(_answer(client, model, item, policy, tokens, salt) for item in items))
        seconds = time.perf_counter() - start
    rights = [score(item.task, answer.text, item.answer) for item, answer in zip(items, answers, strict=True)]
    return LoadTurn(answers, rights, seconds)


async def _answer(client: AsyncOpenAI, model: str, item: Item, policy: str, tokens: int, salt: str) -> TimedAnswer:
    start = time.perf_counter()
    extra = {"kv_policy": policy, "cache_salt": salt, "ignore_eos": True, **continued(item)}
    stream: Any = await client.chat.completions.create(
        model=model, messages=cast("Any", item.messages), max_completion_tokens=tokens, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body=extra,
    )  # fmt: skip
    text, usage, first, whole = await streamed(stream, start)
    return TimedAnswer(text, usage.completion_tokens, first, whole, said(text, usage).bytes)

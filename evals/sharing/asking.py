"""Requests that begin alike, and what the server held while they were answered."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import httpx
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from evals.endpoint import streamed

EVERY = 0.2
"""Seconds between two looks at the pool."""
WATCHED = {"vllm:kv_cache_usage_perc": "pool", "vllm:num_requests_running": "running"}


class SharingAnswer(NamedTuple):
    """One answer. Seconds from when it was asked for; bytes that its cache held at the end, in whole blocks.

    A server does not say the bytes of `full`.
    """

    text: str
    first: float
    whole: float
    bytes: int
    full_bytes: int  # of the same tokens without compression
    shared: int  # tokens that came from a shared compressed prefix
    cached: int  # tokens that came from any cache


@dataclass
class PoolSeen:
    """The most at once: share of the pool that running requests held, and how many ran."""

    pool: float = 0.0
    running: float = 0.0


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[PoolSeen]:
    """Looks while the block runs."""
    seen = PoolSeen()

    async def look() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            while True:
                for family in text_string_to_metric_families((await http.get("/metrics")).text):
                    if (name := WATCHED.get(family.name)) is not None:
                        value = sum(sample.value for sample in family.samples)
                        setattr(seen, name, max(getattr(seen, name), value))
                await asyncio.sleep(EVERY)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        task.cancel()


async def ask(client: AsyncOpenAI, messages: list[dict[str, str]], policy: Any, salt: str, room: int) -> SharingAnswer:
    """Greedy, `room` tokens at most. A last message of the assistant is gone on with."""
    begun = messages[-1]["role"] == "assistant"
    extra = {"kv_policy": policy, "cache_salt": salt, "add_generation_prompt": not begun}
    model = (await client.models.list()).data[0].id
    start = time.perf_counter()
    stream: Any = await client.chat.completions.create(
        model=model, messages=cast("Any", messages), max_completion_tokens=room,
        temperature=0, stream=True, stream_options={"include_usage": True},
        extra_body={**extra, "continue_final_message": begun},
    )  # fmt: skip
    text, usage, first, whole = await streamed(stream, start)
    kept = (usage.model_extra or {}).get("kv_cache") or {}
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return SharingAnswer(
        text,
        first,
        whole,
        kept.get("resident_bytes", 0),
        kept.get("full_bytes", 0),
        kept.get("shared_tokens", 0),
        cached or 0,
    )

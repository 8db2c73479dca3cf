"""Putting `usage.kv_cache` into what vLLM answers, without touching anything else of it."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse

Outcome = Callable[[], dict[str, Any] | None]
FIELD = "kv_cache"


def dumps(value: Any) -> str:
    """As vLLM's own bodies are written: compact, not escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def add_to_body(response: JSONResponse, outcome: dict[str, Any] | None) -> None:
    """Extend a body that has a usage object; errors and queued answers stay as they are."""
    if outcome is None:
        return
    content = json.loads(bytes(response.body))
    usage = content.get("usage") if isinstance(content, dict) else None
    if not isinstance(usage, dict):
        return
    usage[FIELD] = outcome
    response.body = response.render(content)
    response.headers["content-length"] = str(len(response.body))


def _final_usage(event: Any) -> dict[str, Any] | None:
    """The usage object of a stream's last word; that of running totals in earlier chunks is not it."""
    if not isinstance(event, dict):
        return None
    if event.get("choices") == [] or event.get("type") == "message_delta":
        usage = event.get("usage")  # the chunk that include_usage asks for; the one before last of messages
    else:  # responses: response.completed and its siblings
        response = event.get("response")
        usage = response.get("usage") if isinstance(response, dict) else None
    return usage if isinstance(usage, dict) else None


def event_data(chunk: str) -> Any:
    """The JSON value of one server-sent event; None for comments, `[DONE]` and whatever is not JSON."""
    for line in chunk.split("\n"):  # not at U+2028 and others that are text in JSON
        if line.startswith("data: {"):
            try:
                return json.loads(line.removeprefix("data: "))
            except json.JSONDecodeError:
                return None
    return None


def add_to_event(chunk: str, outcome: Outcome) -> str:
    """The same event, with the outcome in its usage if it is the one that reports the final usage."""
    if '"usage":' not in chunk:  # inside generated text the quotes would be escaped
        return chunk
    event = event_data(chunk)
    usage = _final_usage(event)
    found = outcome() if usage is not None else None
    if usage is None or found is None:
        return chunk
    usage[FIELD] = found
    lines = [f"data: {dumps(event)}" if line.startswith("data: {") else line for line in chunk.split("\n")]
    return "\n".join(lines)


async def add_to_stream(chunks: AsyncIterator[Any], outcome: Outcome, close: Callable[[], None]) -> AsyncIterator[Any]:
    """`chunks` with the outcome added; `close` runs when the stream ends, however it ends."""
    try:
        async with aclosing(chunks) as inner:  # type: ignore[type-var]
            async for chunk in inner:
                yield add_to_event(chunk, outcome) if isinstance(chunk, str) else chunk
    finally:
        close()

"""The first words of a stream, read before the status line is sent.

vLLM starts a request when its stream is first read. If the engine refuses it then, the answer would be
status 200 and an error inside the stream; we want the same 400 as without streaming.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, StreamingResponse

from server.errors import failed
from server.usage import event_data

FAILED = "kv_policy '"
"""How the message of a policy's fault begins; vLLM writes no `param` into streams."""

PRELUDE = ("response.created", "response.in_progress")


def _prelude(chunk: Any) -> bool:
    """Whether the engine has not been asked yet when this chunk is sent."""
    event = event_data(chunk) if isinstance(chunk, str) else None
    return isinstance(event, dict) and event.get("type") in PRELUDE


def _refusal(chunk: Any) -> JSONResponse | None:
    """The plain answer, if this chunk says that a policy was refused, or has failed."""
    event = event_data(chunk) if isinstance(chunk, str) else None
    error = event.get("error") if isinstance(event, dict) else None
    if not isinstance(error, dict):
        return None
    if str(error.get("param") or "").startswith("kv_policy"):
        return JSONResponse({"error": error}, status_code=400)
    return failed(str(error["message"])) if str(error.get("message")).startswith(FAILED) else None


async def _chained(head: list[Any], rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async with aclosing(rest) as inner:  # type: ignore[type-var]
        for chunk in head:
            yield chunk
        async for chunk in inner:
            yield chunk


async def opened(response: StreamingResponse) -> StreamingResponse | JSONResponse:
    """The same stream, or a 400 in its place if its first words are a refused policy.

    Waits for the first token (or a keep-alive comment); exceptions of the first words are raised here.
    """
    chunks = aiter(response.body_iterator)
    head: list[Any] = []
    async for chunk in chunks:
        head.append(chunk)
        if not _prelude(chunk):
            break
    refusal = _refusal(head[-1]) if head else None
    if refusal is not None:
        async with aclosing(chunks):  # type: ignore[type-var]
            return refusal
    response.body_iterator = _chained(head, chunks)
    return response

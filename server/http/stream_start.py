"""The beginning of a stream: its headers go out as soon as the engine has taken the request.

vLLM starts a request when its stream is first read. If kvserve refuses it then, the answer would be status 200 and an
error inside the stream; we want the same 400 as without streaming. So the stream is read in a task of its own before
the headers are sent, up to the moment at which the request is checked. The first token may be minutes away by then,
and proxies give up on a server that sends nothing for that long.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any
from weakref import finalize

from starlette.responses import JSONResponse, StreamingResponse

from server.http.errors import failed
from server.http.usage import event_data

FAILED = "kv_policy '"
"""How the message of a policy's fault begins; vLLM writes no `param` into streams."""

PRELUDE = ("response.created", "response.in_progress")

GRACE = 0.05
"""Seconds in which the other prompts of one HTTP request are checked, too, once the first has been taken."""

_taken: ContextVar[asyncio.Event | None] = ContextVar("kvserve_taken", default=None)
"""Set when the engine takes a request of the stream that is being opened. The tasks that vLLM starts share it."""


def watch(output_processor: Any) -> None:
    """Learn what the engine takes: vLLM's front end tells its OutputProcessor of each request that it has checked."""
    add = output_processor.add_request

    def add_request(*args: Any, **kwargs: Any) -> None:
        add(*args, **kwargs)
        if (event := _taken.get()) is not None:
            event.set()

    output_processor.add_request = add_request


def _prelude(chunk: Any) -> bool:
    """Whether the engine has not been asked yet when this chunk is sent."""
    event = event_data(chunk) if isinstance(chunk, str) else None
    return isinstance(event, dict) and event.get("type") in PRELUDE


def _failure(chunk: Any) -> JSONResponse | None:
    """The plain answer, if this chunk says that a policy has failed."""
    event = event_data(chunk) if isinstance(chunk, str) else None
    error = event.get("error") if isinstance(event, dict) else None
    message = str(error.get("message")) if isinstance(error, dict) else ""
    return failed(message) if message.startswith(FAILED) else None


class Opening:
    """A stream of which a task reads the first words."""

    def __init__(self, chunks: AsyncIterator[Any]) -> None:
        self._chunks = chunks
        self._head: list[Any] = []
        self._taken = asyncio.Event()
        token = _taken.set(self._taken)
        self.reading = asyncio.create_task(self._read())
        _taken.reset(token)

    async def _read(self) -> None:
        async for chunk in self._chunks:
            self._head.append(chunk)
            if not _prelude(chunk):
                break

    async def checked(self) -> None:
        """Return when the engine has taken the request or the stream has begun; what that raises is raised here."""
        taken = asyncio.create_task(self._taken.wait())
        try:
            await asyncio.wait({self.reading, taken}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({self.reading}, timeout=GRACE)
        except asyncio.CancelledError:
            self.reading.cancel()
            raise
        finally:
            taken.cancel()
        if self.reading.done():
            self.reading.result()

    def failure(self) -> JSONResponse | None:
        """The plain answer, if the request has failed before its first word."""
        return _failure(self._head[-1]) if self.reading.done() and self._head else None

    async def all(self) -> AsyncIterator[Any]:
        """The stream from its beginning."""
        try:
            begun = len(self._head)
            for chunk in self._head[:begun]:
                yield chunk
            await self.reading
            for chunk in self._head[begun:]:
                yield chunk
            async for chunk in self._chunks:
                yield chunk
        finally:
            await self.close()

    async def close(self) -> None:
        """Give the request up if it is not over."""
        if self.reading.cancel():  # it ends the stream that it waits for
            await asyncio.wait({self.reading})
        await self._chunks.aclose()  # type: ignore[attr-defined]


async def opened(
    response: StreamingResponse, refusal: Callable[[], JSONResponse | None]
) -> StreamingResponse | JSONResponse:
    """The same stream, or the plain answer in its place if its request was refused meanwhile or has failed at once.

    refusal: gives that answer if it was refused.
    """
    opening = Opening(aiter(response.body_iterator))
    await opening.checked()
    if (answer := refusal() or opening.failure()) is not None:
        await opening.close()
        return answer
    response.body_iterator = opening.all()
    finalize(response, opening.reading.cancel).atexit = False  # a client that leaves before the body is begun
    return response

"""When a stream's headers go out, and what becomes of it if its request is refused or its client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from starlette.responses import JSONResponse, StreamingResponse

from server.http.stream_start import opened, watch

CREATED = 'event: response.created\ndata: {"type":"response.created"}\n\n'
PROGRESS = 'data: {"type":"response.in_progress"}\n\n'
ADMITTED = object()  # the engine takes the request here, before the next chunk


class FakeStream:
    """Says its chunks; waits for `go` after it has told the engine's front end of its request."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks
        self.go = asyncio.Event()
        self.ended = False
        self.processor = SimpleNamespace(add_request=lambda *_: None)
        watch(self.processor)
        self.refusal: JSONResponse | None = None
        self.response = StreamingResponse(self._body())

    async def _body(self) -> AsyncIterator[Any]:
        try:
            for chunk in self.chunks:
                if chunk is ADMITTED:
                    await asyncio.create_task(self._add())  # as vLLM does with several prompts
                    await self.go.wait()
                elif isinstance(chunk, Exception):
                    raise chunk
                else:
                    yield chunk
        finally:
            self.ended = True

    async def _add(self) -> None:
        self.processor.add_request("request", None, None, 0, None)

    async def open(self) -> Any:
        async with asyncio.timeout(5):
            return await opened(self.response, lambda: self.refusal)


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene())


async def _rest(response: Any) -> list[Any]:
    return [chunk async for chunk in response.body_iterator]


@pytest.mark.parametrize("before", [[], [CREATED, PROGRESS]])
def test_headers_do_not_wait_for_the_first_token(before: list[str]) -> None:
    async def scene() -> None:
        stream = FakeStream(*before, ADMITTED, "first", "second")
        response = await stream.open()
        assert response is stream.response and not stream.go.is_set()
        body = aiter(response.body_iterator)
        assert [await anext(body) for _ in before] == before  # nor do the words before the engine's
        stream.go.set()
        assert [chunk async for chunk in body] == ["first", "second"]
        assert stream.ended

    play(scene)


def test_a_refused_request_is_a_plain_answer() -> None:
    async def scene() -> None:
        stream = FakeStream(CREATED, "an error inside the stream", "data: [DONE]\n\n")
        stream.refusal = JSONResponse({"error": "no"}, status_code=400)
        response = await stream.open()
        assert response.status_code == 400 and json.loads(response.body) == {"error": "no"}
        assert stream.ended

    play(scene)


def test_a_second_prompt_that_is_refused_is_one_too() -> None:
    async def scene() -> None:
        stream = FakeStream(ADMITTED, "never")
        stream.refusal = JSONResponse({"error": "no"}, status_code=400)
        assert (await stream.open()).status_code == 400
        await asyncio.sleep(0)
        assert stream.ended

    play(scene)


@pytest.mark.parametrize("chunks", [[], ["a"], [CREATED, PROGRESS, "a", "b"], [": keep-alive\n\n", "a"], [b"a", "b"]])
def test_other_streams_open_unchanged(chunks: list[Any]) -> None:
    async def scene() -> None:
        assert await _rest(await FakeStream(*chunks).open()) == chunks

    play(scene)


def test_errors_before_the_headers_are_raised_and_later_ones_end_the_stream() -> None:
    async def scene() -> None:
        with pytest.raises(ValueError, match="early"):
            await FakeStream(CREATED, ValueError("early")).open()
        stream = FakeStream(ADMITTED, ValueError("late"))
        response = await stream.open()
        stream.go.set()
        with pytest.raises(ValueError, match="late"):
            await _rest(response)

    play(scene)


def test_a_client_that_leaves_ends_the_request() -> None:
    async def scene() -> None:
        early = FakeStream(ADMITTED, "never")
        task = asyncio.create_task(early.open())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        unread = FakeStream(ADMITTED, "never")
        await unread.open()
        unread.response = StreamingResponse(iter(()))  # nobody holds the response any more
        reading = FakeStream(ADMITTED, "never")
        task = asyncio.create_task(_rest(await reading.open()))
        await asyncio.sleep(0.01)
        task.cancel()
        later = FakeStream(ADMITTED, "first", ADMITTED, "never")
        later.go.set()
        body = aiter((await later.open()).body_iterator)
        await anext(body)
        await body.aclose()
        await asyncio.sleep(0.01)
        assert [stream.ended for stream in (early, unread, reading, later)] == [True] * 4

    play(scene)

"""`usage.kv_cache` goes into the one place it belongs, and everything else stays byte for byte."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import JSONResponse

from server.http.usage import add_to_body, add_to_event, add_to_stream

OUTCOME = {"policy": "streaming", "kept_tokens": 12.5}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def _sse(value: Any, event: str | None = None) -> str:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _added(chunk: str) -> Any:
    changed = add_to_event(chunk, lambda: OUTCOME)
    assert changed.endswith("\n\n")
    return json.loads(changed.partition("data: ")[2])


def test_body() -> None:
    response = JSONResponse({"id": "ü", "usage": dict(USAGE)})
    add_to_body(response, OUTCOME)
    assert json.loads(bytes(response.body)) == {"id": "ü", "usage": {**USAGE, "kv_cache": OUTCOME}}
    assert response.headers["content-length"] == str(len(response.body))


def test_body_without_outcome_or_usage_is_untouched() -> None:
    for content, outcome in (({"usage": USAGE}, None), ({"error": {}}, OUTCOME), ({"usage": None}, OUTCOME)):
        response = JSONResponse(content)
        before = bytes(response.body)
        add_to_body(response, outcome)
        assert bytes(response.body) == before


def test_last_chunk_of_a_chat_stream() -> None:
    chunk = _sse({"id": "1", "choices": [], "usage": USAGE})
    assert _added(chunk) == {"id": "1", "choices": [], "usage": {**USAGE, "kv_cache": OUTCOME}}


def test_completed_event_of_a_responses_stream() -> None:
    value = {"type": "response.completed", "response": {"id": "r", "usage": USAGE, "text": "ü"}}
    changed = add_to_event(_sse(value, "response.completed"), lambda: OUTCOME)
    assert changed.startswith("event: response.completed\ndata: {")
    assert json.loads(changed.partition("data: ")[2])["response"]["usage"]["kv_cache"] == OUTCOME
    assert "ü" in changed


def test_last_but_one_event_of_a_stream_of_messages() -> None:
    value = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 2}}
    changed = add_to_event(_sse(value, "message_delta"), lambda: OUTCOME)
    assert changed.startswith("event: message_delta\ndata: {")
    assert _added(_sse(value))["usage"] == {"output_tokens": 2, "kv_cache": OUTCOME}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c", "\r", "\n"])
def test_marks_that_python_takes_for_line_ends(mark: str) -> None:
    value = {"type": "response.completed", "response": {"metadata": {"a": f"b{mark}c"}, "usage": USAGE}}
    response = _added(_sse(value))["response"]
    assert (response["usage"]["kv_cache"], response["metadata"]) == (OUTCOME, {"a": f"b{mark}c"})


def test_other_chunks_are_the_same_string() -> None:
    for chunk in (
        "data: [DONE]\n\n",
        ": keep-alive\n\n",
        _sse({"choices": [{"delta": {"content": '"usage": {'}}]}),
        _sse({"choices": [{"index": 0}], "usage": USAGE}),  # continuous_usage_stats
        _sse({"type": "response.created", "response": {"usage": None}}),
        'data: {"usage": broken\n\n',
    ):
        assert add_to_event(chunk, lambda: OUTCOME) is chunk
    assert add_to_event(_sse({"choices": [], "usage": USAGE}), lambda: None) == _sse({"choices": [], "usage": USAGE})


async def _chunks(*values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value


async def _all(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


def test_stream_closes_the_call_at_its_end_and_when_it_is_abandoned() -> None:
    closed: list[str] = []

    async def run() -> list[Any]:
        whole = await _all(add_to_stream(_chunks("a", b"b"), lambda: OUTCOME, lambda: closed.append("end")))
        part = add_to_stream(_chunks("a", "b"), lambda: OUTCOME, lambda: closed.append("left"))
        await anext(part)
        await part.aclose()  # type: ignore[attr-defined]
        return whole

    assert asyncio.run(run()) == ["a", b"b"]
    assert closed == ["end", "left"]

"""Routes of vLLM that generate text but know no `kv_policy`: asking for one there is an error, not ignored."""

import json
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvserve import request as wire
from kvserve.errors import PolicyError
from server.board import board
from server.choice import HEADER
from server.errors import refused

PATHS = frozenset(
    {
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
        "/v1/chat/completions/batch",
        "/v1/messages",
    }
)


class Elsewhere:
    """ASGI middleware: HTTP 400 for a body field or header on one of PATHS, else nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _path(scope) not in PATHS:
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        body = await request.body()
        if HEADER in request.headers or _asks(body):
            return await _refuse(_path(scope))(scope, receive, send)
        await self.app(scope, _replayed(body, receive), send)


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _asks(body: bytes) -> bool:
    """Whether the body has the field at its top; most bodies are not even parsed."""
    if wire.KEY.encode() not in body:
        return False
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False  # vLLM says what is wrong with it
    return isinstance(content, dict) and content.get(wire.KEY) is not None


def _refuse(path: str) -> ASGIApp:
    error = PolicyError(
        f"kv_policy is not available on {path}; it is on /v1/chat/completions, /v1/completions and /v1/responses",
        reason="unsupported",
    )
    board.begin()
    board.reject(error)
    return refused(error)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` as it was before the body was read."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again

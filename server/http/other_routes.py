"""Routes of vLLM that generate text but take no `kv_policy`: asking for one there is an error, not ignored.

The server's default applies to every request of the engine, these routes' too, but where it can do nothing they are
refused: what reads one token after the prompt, and beam search, end before anything is compressed.
"""

import json
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvserve.policy import Policy, SummaryTokens
from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError
from kvserve.policy.evidence import find
from server.http.choice import HEADER
from server.http.errors import refused
from server.http.spelling import refuse_misspelt
from server.metrics.board import board

READING = frozenset({"/generative_scoring", "/v1/systemone"})
"""They ask for one token and its log-probabilities."""

RENDERING = frozenset(
    f"{path}/render"
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/cohere/v2/chat")
)
"""They answer a body for /inference/v1/generate."""

PATHS = (
    frozenset({"/cohere/v2/chat", "/invocations", "/v1/audio/transcriptions", "/v1/audio/translations"})
    | READING
    | RENDERING
)


class Elsewhere:
    """ASGI middleware: HTTP 400 for a policy, or for what the server's own does not reach, on one of PATHS."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _path(scope) not in PATHS:
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        body = await request.body()
        try:
            _check(_path(scope), request, _fields(body))
        except PolicyError as error:
            board.begin()
            board.reject(error)
            return await refused(error)(scope, receive, send)
        await self.app(scope, _replayed(body, receive), send)


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _fields(body: bytes) -> dict[str, Any]:
    """What the body has at its top; nothing if it is no JSON object, of which vLLM says what is wrong with it."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _check(path: str, request: Request, fields: dict[str, Any]) -> None:
    """Raises PolicyError."""
    refuse_misspelt(fields, "vllm_xargs", request.headers, request.query_params)
    if HEADER in request.headers or fields.get(wire.KEY) is not None:
        raise PolicyError(f"kv_policy is not available on {path}; {_instead(path)}", reason="unsupported")
    default = _default(request)
    if default is None or not default.compresses:
        return
    if path in READING and default.at is None and not find(SummaryTokens, default.evidence):
        raise PolicyError(
            f"{path} reads the log-probabilities of one token after the prompt, before anything is compressed, and "
            f"this server compresses by default (--kv-policy {default.name}): start it without, or with an 'at'",
            reason="unsupported",
        )
    if fields.get("use_beam_search"):
        raise PolicyError(
            f"kv_policy {default.name!r}, this server's default, cannot be combined with use_beam_search: every step "
            "of a beam is a request of its own; leave use_beam_search out",
            reason="unsupported",
        )


def _instead(path: str) -> str:
    if path in RENDERING:
        return "send it to /inference/v1/generate, with what this answers"
    return "it is on /v1/chat/completions (/batch too), /v1/completions, /v1/responses and /v1/messages"


def _default(request: Request) -> Policy | None:
    service = getattr(request.app.state, "kvserve", None)
    default = service.choice.default if service is not None else None
    return default.policy if default is not None else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` as it was before the body was read."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again

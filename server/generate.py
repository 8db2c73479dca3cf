"""POST /v1/chat/completions, /v1/completions, /v1/responses: vLLM's own handlers with a policy around them."""

from collections.abc import Awaitable, Callable
from inspect import unwrap
from typing import Any
from weakref import finalize

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion import api_router as chat
from vllm.entrypoints.openai.completion import api_router as completion
from vllm.entrypoints.openai.responses import api_router as responses
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation

from kvserve import request as wire
from kvserve.errors import PolicyError
from kvserve.policy import Policy
from server.bodies import KVChatCompletionRequest, KVCompletionRequest, KVResponsesRequest
from server.choice import HEADER, shown
from server.errors import refused
from server.opening import opened
from server.service import Service
from server.usage import add_to_body, add_to_stream

Handler = Callable[[Any, Request], Awaitable[Response]]


@with_cancellation
@load_aware_call
async def create_chat_completion(request: KVChatCompletionRequest, raw_request: Request) -> Response:
    """vLLM's chat completions, with `kv_policy`."""
    return await serve(unwrap(chat.create_chat_completion), request, raw_request)


@with_cancellation
@load_aware_call
async def create_completion(request: KVCompletionRequest, raw_request: Request) -> Response:
    """vLLM's completions, with `kv_policy`."""
    return await serve(unwrap(completion.create_completion), request, raw_request)


@with_cancellation
@load_aware_call
async def create_responses(request: KVResponsesRequest, raw_request: Request) -> Response:
    """vLLM's responses, with `kv_policy`."""
    return await serve(unwrap(responses.create_responses), request, raw_request)


async def serve(handler: Handler, request: Any, raw_request: Request) -> Response:
    """Choose the policy, let vLLM answer, report what became of the cache."""
    service = Service.of(raw_request)
    service.board.begin()
    if service.canary is not None:
        await service.canary.arrived()  # the engine is free before the prompt is tokenized
    try:
        policy = service.choice.of(request.kv_policy, raw_request.headers, request.vllm_xargs)
        _refuse_beam_search(service, policy, request)
    except PolicyError as error:
        service.board.reject(error)
        return refused(error)
    if policy is not None and policy.compresses:
        return await _compressed(handler, service, policy, request, raw_request)
    _hand_on(request, policy if service.board.switched_on else None)
    response = await handler(request, raw_request)
    may_not_fit = service.options.resident_tokens is not None
    return await opened(response) if may_not_fit and isinstance(response, StreamingResponse) else response


async def _compressed(
    handler: Handler, service: Service, policy: Policy, request: Any, raw_request: Request
) -> Response:
    call = service.ledger.open()
    _hand_on(request, policy, call)
    try:
        response = await handler(request, raw_request)
        if isinstance(response, StreamingResponse):
            response = await opened(response)
    except BaseException:
        service.ledger.close(call)
        raise
    if response.status_code < 400:
        response.headers[HEADER] = shown(policy)
    return _reported(response, service, call)


def _reported(response: Response, service: Service, call: str) -> Response:
    """The response, or its stream, with `usage.kv_cache`; the call is closed when it has been sent."""

    def outcome() -> dict[str, Any] | None:
        return service.ledger.outcome(call)

    if isinstance(response, StreamingResponse):
        chunks = aiter(response.body_iterator)
        response.body_iterator = add_to_stream(chunks, outcome, lambda: service.ledger.close(call))
        finalize(response, service.ledger.close, call)  # a client that leaves before the body is begun
        return response
    with service.ledger.closing(call):
        if isinstance(response, JSONResponse):
            add_to_body(response, outcome())
    return response


def _hand_on(request: Any, policy: Policy | None, call: str | None = None) -> None:
    """Put the policy where vLLM carries it into the sampling parameters; never the client's own call id."""
    xargs = {k: v for k, v in (request.vllm_xargs or {}).items() if k not in (wire.KEY, wire.CALL)}
    if policy is not None:
        xargs[wire.KEY] = wire.dump(policy)
    if call is not None:
        xargs[wire.CALL] = call
    request.vllm_xargs = xargs or None


def _refuse_beam_search(service: Service, policy: Policy | None, request: Any) -> None:
    """vLLM makes a new request for every step of every beam, and gives them no `vllm_xargs`."""
    compressing = [p for p in (policy, service.choice.default) if p is not None and p.compresses]
    if compressing and getattr(request, "use_beam_search", False):
        raise PolicyError(
            f"kv_policy {compressing[0].name!r} cannot be combined with use_beam_search: every step of a beam "
            "is a request of its own; leave use_beam_search out"
            + ("" if policy in compressing else " (this server compresses by default)"),
            reason="unsupported",
        )


def attach(app: FastAPI) -> None:
    """Register the three routes with vLLM's own dependencies and documented answers."""
    for router, path, endpoint in (
        (chat.router, "/v1/chat/completions", create_chat_completion),
        (completion.router, "/v1/completions", create_completion),
        (responses.router, "/v1/responses", create_responses),
    ):
        stock = next(r for r in router.routes if isinstance(r, APIRoute) and r.path == path)
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            dependencies=stock.dependencies,
            responses=stock.responses,
            response_model=None,
        )

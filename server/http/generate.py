"""What our generating routes have in common: vLLM's own handler with a policy around it."""

from collections.abc import Awaitable, Callable
from typing import Any
from weakref import finalize

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kvserve.channels import Asked
from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError, PolicyFault
from kvserve.policy.request import Accepted
from server.http.choice import HEADER, shown
from server.http.errors import failed, refused
from server.http.faults import explained
from server.http.service import Service
from server.http.spelling import refuse_misspelt
from server.http.stream_start import opened
from server.http.usage import add_to_body, add_to_stream

Handler = Callable[[Any, Request], Awaitable[Response]]
Shape = Callable[[PolicyError], JSONResponse]
"""How an endpoint refuses a request."""


async def serve(handler: Handler, request: Any, raw_request: Request, shape: Shape = refused) -> Response:
    """Choose the policy, let vLLM answer, report what became of the cache. `request` is one of `server.http.bodies`."""
    service = Service.of(raw_request)
    service.board.begin()
    if service.canary is not None:
        await service.canary.arrived()  # the engine is free before the prompt is tokenized
    try:
        refuse_misspelt(request.unread(), request.XARGS, raw_request.headers, raw_request.query_params)
        wire.refuse_internal(request.vllm_xargs, request.XARGS)
        chosen = service.choice.of(request.kv_policy, raw_request.headers, request.vllm_xargs)
        _refuse_beam_search(service, chosen, request)
    except PolicyError as error:
        service.board.reject(error)
        return shape(error)
    if chosen is not None and chosen.policy.compresses:
        return await _compressed(handler, service, chosen, request, raw_request, shape)
    _hand_on(request, chosen if service.board.switched_on else None)
    response = await handler(request, raw_request)
    may_not_fit = service.options.resident_tokens is not None
    if may_not_fit and isinstance(response, StreamingResponse):
        return await opened(response, lambda: _answer(service.board.refusal(), shape))
    return response


async def _compressed(
    handler: Handler, service: Service, chosen: Accepted, request: Any, raw_request: Request, shape: Shape
) -> Response:
    call = service.ledger.open()
    _hand_on(request, chosen, call)
    try:
        response = await handler(request, raw_request)
        if isinstance(response, StreamingResponse):
            response = await opened(response, lambda: _answer(service.board.refusal(), shape))
    except BaseException:
        service.ledger.close(call)
        raise
    if response.status_code < 400:
        response.headers[HEADER] = shown(chosen.policy)
    return _reported(response, service, call, raw_request.url.path)


def _answer(error: PolicyError | PolicyFault | None, shape: Shape) -> JSONResponse | None:
    """The plain answer in the place of a stream; None if it goes on."""
    if error is None:
        return None
    return failed(str(error)) if isinstance(error, PolicyFault) else shape(error)


def _reported(response: Response, service: Service, call: str, path: str) -> Response:
    """The response, or its stream, with `usage.kv_cache`; the call is closed when it has been sent."""

    def outcome() -> dict[str, Any] | None:
        return service.ledger.outcome(call)

    if isinstance(response, StreamingResponse):
        chunks = explained(aiter(response.body_iterator), lambda: service.ledger.fault(call), path)
        response.body_iterator = add_to_stream(chunks, outcome, lambda: service.ledger.close(call))
        finalize(response, service.ledger.close, call)  # a client that leaves before the body is begun
        return response
    with service.ledger.closing(call):
        if isinstance(response, JSONResponse):
            add_to_body(response, outcome())
    return response


def _hand_on(request: Any, chosen: Accepted | None, call: str | None = None) -> None:
    """Put the policy where vLLM carries it into the sampling parameters."""
    others = {k: v for k, v in (request.vllm_xargs or {}).items() if k != wire.KEY}
    request.vllm_xargs = Asked(chosen.text if chosen is not None else None, call).into(others) or None


def _refuse_beam_search(service: Service, chosen: Accepted | None, request: Any) -> None:
    """vLLM makes a new request for every step of every beam, and gives them no `vllm_xargs`."""
    compressing = [a for a in (chosen, service.choice.default) if a is not None and a.policy.compresses]
    if compressing and getattr(request, "use_beam_search", False):
        raise PolicyError(
            f"kv_policy {compressing[0].policy.name!r} cannot be combined with use_beam_search: every step of a beam "
            "is a request of its own; leave use_beam_search out"
            + ("" if chosen in compressing else " (this server compresses by default)"),
            reason="unsupported",
        )

"""Refusals and faults in the error body of each API, made by vLLM's own functions so that they look like its others."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from vllm.entrypoints.anthropic.api_router import translate_error_response
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from kvserve.engine.failure import PolicyFailed
from kvserve.policy.errors import PolicyError, PolicyFault
from server.metrics.board import board


def refused(error: PolicyError) -> JSONResponse:
    """HTTP 400 with `error.param` naming the field, as OpenAI's."""
    body = create_error_response(str(error), param=error.param)
    return JSONResponse(body.model_dump(), status_code=HTTPStatus.BAD_REQUEST)


def failed(message: str) -> JSONResponse:
    """HTTP 500: a policy's own code has ended the request."""
    return JSONResponse(fault_body(message), status_code=HTTPStatus.INTERNAL_SERVER_ERROR)


def fault_body(message: str) -> dict[str, Any]:
    """What such an answer says."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return create_error_response(message, "InternalServerError", status, "kv_policy").model_dump()


def handle(app: FastAPI) -> None:
    """From now on a policy's fault is answered in this way on every route."""

    async def found_here(raw_request: Request, fault: Exception) -> JSONResponse:
        board.reject(fault)  # type: ignore[arg-type]
        return _failed_on(raw_request, fault)

    async def found_elsewhere(raw_request: Request, fault: Exception) -> JSONResponse:
        return _failed_on(raw_request, fault)

    app.exception_handler(PolicyFault)(found_here)
    app.exception_handler(PolicyFailed)(found_elsewhere)  # by the engine and its front end, which have counted it


def _failed_on(raw_request: Request, fault: Exception) -> JSONResponse:
    if raw_request.url.path.endswith("/v1/messages"):
        return translate_error_response(create_error_response(PolicyFailed(str(fault))))
    return failed(str(fault))


def refused_in_messages(error: PolicyError) -> JSONResponse:
    """HTTP 400 as Anthropic's, which has no place for the field but the message."""
    return translate_error_response(create_error_response(str(error)))


def unknown(message: str, param: str) -> JSONResponse:
    """HTTP 404."""
    body = create_error_response(message, "NotFoundError", HTTPStatus.NOT_FOUND, param)
    return JSONResponse(body.model_dump(), status_code=HTTPStatus.NOT_FOUND)

"""Refusals in OpenAI's error body, made by vLLM's own function so that they look like its others."""

from http import HTTPStatus

from starlette.responses import JSONResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from kvserve.errors import PolicyError


def refused(error: PolicyError) -> JSONResponse:
    """HTTP 400 with `error.param` naming the field."""
    body = create_error_response(str(error), param=error.param)
    return JSONResponse(body.model_dump(), status_code=HTTPStatus.BAD_REQUEST)


def unknown(error: PolicyError, param: str) -> JSONResponse:
    """HTTP 404."""
    body = create_error_response(str(error), "NotFoundError", HTTPStatus.NOT_FOUND, param)
    return JSONResponse(body.model_dump(), status_code=HTTPStatus.NOT_FOUND)

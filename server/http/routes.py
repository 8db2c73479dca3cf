"""The routes that take a policy: vLLM's own, each with our field in its body."""

from inspect import unwrap
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from vllm.entrypoints.anthropic import api_router as messages
from vllm.entrypoints.openai.chat_completion import api_router as chat
from vllm.entrypoints.openai.completion import api_router as completion
from vllm.entrypoints.openai.responses import api_router as responses
from vllm.entrypoints.scale_out.token_in_token_out import api_router as tokens
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation

from server.http.bodies import (
    KVBatchChatCompletionRequest,
    KVChatCompletionRequest,
    KVCompletionRequest,
    KVGenerateRequest,
    KVMessagesRequest,
    KVResponsesRequest,
)
from server.http.errors import refused_in_messages
from server.http.generate import serve
from server.http.marks import read_marks


@with_cancellation
@load_aware_call
async def create_chat_completion(request: KVChatCompletionRequest, raw_request: Request) -> Response:
    """vLLM's chat completions, with `kv_policy`."""
    return await serve(unwrap(chat.create_chat_completion), request, raw_request)


@with_cancellation
@load_aware_call
async def create_batch_chat_completion(request: KVBatchChatCompletionRequest, raw_request: Request) -> Response:
    """vLLM's chat completions of several conversations, with one `kv_policy` for all."""
    return await serve(unwrap(chat.create_batch_chat_completion), request, raw_request)


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


@with_cancellation
@load_aware_call
async def create_messages(request: KVMessagesRequest, raw_request: Request) -> Response:
    """vLLM's Anthropic messages, with `kv_policy`; `cache_control` says where to compress."""
    await read_marks(request, raw_request)
    return await serve(unwrap(messages.create_messages), request, raw_request, refused_in_messages)


@with_cancellation
@load_aware_call
async def generate(request: KVGenerateRequest, raw_request: Request) -> Response:
    """vLLM's tokens in, tokens out, with `kv_policy`."""
    return await serve(unwrap(tokens.generate), request, raw_request)


ROUTES: tuple[tuple[APIRouter, str, Any], ...] = (
    (chat.router, "/v1/chat/completions", create_chat_completion),
    (chat.router, "/v1/chat/completions/batch", create_batch_chat_completion),
    (completion.router, "/v1/completions", create_completion),
    (responses.router, "/v1/responses", create_responses),
    (messages.router, "/v1/messages", create_messages),
    (tokens.router, "/inference/v1/generate", generate),
)
PATHS = tuple(path for _, path, _ in ROUTES)


def attach(app: FastAPI) -> None:
    """Register them with vLLM's own dependencies and documented answers."""
    for router, path, endpoint in ROUTES:
        if _switched_off(app, path):
            continue
        stock = next(r for r in router.routes if isinstance(r, APIRoute) and r.path == path)
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            dependencies=stock.dependencies,
            responses=stock.responses,
            response_model=None,
        )


def _switched_off(app: FastAPI, path: str) -> bool:
    """Whether vLLM answers 403 here, as on /inference/v1/generate without --enable-scale-out; it hides such routes."""
    return any(isinstance(r, APIRoute) and r.path == path and not r.include_in_schema for r in app.routes)

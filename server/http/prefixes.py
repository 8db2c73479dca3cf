"""GET /v1/kv/prefixes, DELETE /v1/kv/prefixes/{id}: compressed prefixes that are kept for later requests.

What is said of them are numbers: whoever has the key may see that there are prefixes, and nobody sees their text.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from kvserve.stats import SHOWN
from server.http.errors import unknown
from server.http.service import Service

DROP = "kv_drop_prefix"
"""Utility method of kvserve's engines: takes an id, and answers whether the engine had held that prefix."""


class SharedPrefixCard(BaseModel):
    """One compressed prefix. Tokens are per layer (mean over layers)."""

    id: str
    policy: str
    budget: int | float | None
    logical_tokens: int = Field(description="Tokens that a request which starts from it does not read")
    kept_tokens: float
    bytes: int = Field(description="Of its blocks")
    hits: int = Field(description="Requests that have started from it")
    age_seconds: float
    idle_seconds: float = Field(description="Since it was made, or last taken")


class PrefixList(BaseModel):
    """The prefixes that the engines hold."""

    object: str = "list"
    data: list[SharedPrefixCard] = Field(description=f"At most {SHOWN} of each engine, last used first")
    prefix_bytes: int = Field(description="Of all of them, also those that are not listed")


class DroppedPrefix(BaseModel):
    """The answer to a DELETE, as OpenAI's."""

    id: str
    deleted: bool = True


async def list_prefixes(raw_request: Request) -> PrefixList:
    """What the engines hold, as fresh as their last step."""
    totals = Service.of(raw_request).board.view().totals
    by_use = sorted(totals.prefixes, key=lambda prefix: prefix["idle_seconds"])
    return PrefixList(data=[SharedPrefixCard(**each) for each in by_use], prefix_bytes=totals.prefix_bytes)


async def drop_prefix(id: str, raw_request: Request) -> Response:
    """Give a prefix up in every engine. Requests that have started from it go on; the next one has to read it again."""
    service = Service.of(raw_request)
    if not await _drop(service, id):
        return unknown(f"no engine holds a shared prefix {id!r}; GET /v1/kv/prefixes lists them", "id")
    return JSONResponse(DroppedPrefix(id=id).model_dump())


async def _drop(service: Service, prefix_id: str) -> bool:
    """Whether any engine held it. vLLM's `call_utility_async` would tell of the first one's answer alone."""
    if service.engine_client is None:
        return False
    answers = await service.engine_client.engine_core.call_utility_all_async(DROP, prefix_id)
    service.board.forget(prefix_id)
    return any(answers)


def attach(app: FastAPI) -> None:
    answers: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse}, 200: {"model": DroppedPrefix}}
    app.add_api_route("/v1/kv/prefixes", list_prefixes, methods=["GET"])
    app.add_api_route("/v1/kv/prefixes/{id}", drop_prefix, methods=["DELETE"], responses=answers)

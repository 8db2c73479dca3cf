"""GET /v1/kv/policies, /v1/kv/policies/{name}, /v1/kv/stats. Behind the API key, as all of /v1."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from kvserve.policy.errors import PolicyError
from kvserve.stats import SHOWN, PolicyTotals
from server.catalog import PolicyCard, PolicyList, card, cards
from server.http.errors import unknown
from server.http.service import Service


class PolicyStats(BaseModel):
    """Running totals of one policy."""

    requests: int
    compactions: int
    tokens_evicted: float = Field(description="Per layer, mean over layers")
    tokens_merged: float = Field(description="Per layer, mean over layers")
    blocks_freed: int
    pressure_compactions: int
    errors: int = Field(description="Requests that the policy's own code ended with an error")
    prefix_hits: int = Field(description="Requests that started from a shared compressed prefix")
    prefix_tokens: int = Field(description="Prompt tokens that these did not have to read")
    compaction_seconds: float = Field(description="Sum")
    kept_fraction: float | None = Field(description="Mean over finished requests; null if there is none")


class RunningRequest(BaseModel):
    """One request that the engine is working on. Tokens are per layer (mean over layers)."""

    id: str = Field(description="The end of vLLM's id of it")
    policy: str
    budget: int | float | None = Field(description="null for full")
    stage: str = Field(description="prefill or decode")
    logical_tokens: int
    kept_tokens: float
    resident_bytes: int
    full_bytes: int


class KVStats(BaseModel):
    """The pool and what each policy did since start-up."""

    object: str = "kv_stats"
    model: str
    enabled: bool = Field(description="Whether the engine runs kvserve's scheduler")
    pool_bytes: int | None = Field(description="All KV-cache blocks; null before the first request")
    resident_bytes: int = Field(description="Held now by running requests")
    full_bytes: int = Field(description="What the same requests would hold uncompressed")
    prefix_bytes: int = Field(description="Of shared compressed prefixes, those that running requests use included")
    requests_running: int
    requests_waiting: int
    running: list[RunningRequest] = Field(description=f"At most {SHOWN} of each engine, the oldest first")
    preemptions_avoided: int
    rejections: dict[str, int] = Field(description="Refused requests by reason")
    policies: dict[str, PolicyStats]


def _policy_stats(totals: PolicyTotals) -> PolicyStats:
    ended = sum(totals.kept.counts)
    return PolicyStats(
        requests=totals.requests,
        compactions=totals.compactions,
        tokens_evicted=totals.evicted,
        tokens_merged=totals.merged,
        blocks_freed=totals.blocks_freed,
        pressure_compactions=totals.pressure_compactions,
        errors=totals.errors,
        prefix_hits=totals.prefix_hits,
        prefix_tokens=totals.prefix_tokens,
        compaction_seconds=totals.seconds.total,
        kept_fraction=totals.kept.total / ended if ended else None,
    )


async def list_policies(raw_request: Request) -> PolicyList:
    """The installed policies, and for each whether this server can run it."""
    return cards(Service.of(raw_request).choice)


async def show_policy(name: str, raw_request: Request) -> Response:
    """One policy; hyphen and underscore are the same."""
    try:
        found = card(name, Service.of(raw_request).choice)
    except PolicyError as error:
        return unknown(str(error), "name")
    return JSONResponse(found.model_dump())


async def show_stats(raw_request: Request) -> KVStats:
    """The pool and each policy's running totals, summed over engines and API processes; as fresh as the last step."""
    board = Service.of(raw_request).board
    totals, reported, rejections = board.view()
    return KVStats(
        model=board.model_name,
        enabled=board.switched_on,
        pool_bytes=totals.pool_bytes if reported else None,
        resident_bytes=totals.resident_bytes,
        full_bytes=totals.full_bytes,
        prefix_bytes=totals.prefix_bytes,
        requests_running=totals.requests_running,
        requests_waiting=totals.requests_waiting,
        running=[RunningRequest(**request) for request in totals.running],
        preemptions_avoided=totals.preemptions_avoided,
        rejections=rejections,
        policies={name: _policy_stats(p) for name, p in sorted(totals.policies.items())},
    )


def attach(app: FastAPI) -> None:
    not_found: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse}, 200: {"model": PolicyCard}}
    app.add_api_route("/v1/kv/policies", list_policies, methods=["GET"])
    app.add_api_route("/v1/kv/policies/{name}", show_policy, methods=["GET"], responses=not_found)
    app.add_api_route("/v1/kv/stats", show_stats, methods=["GET"])

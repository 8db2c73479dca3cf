"""The routes in a real FastAPI app, with vLLM's handlers and a made-up model behind them."""

import json
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.openai.completion.protocol import CompletionResponse, CompletionResponseChoice
from vllm.entrypoints.serve.engine.protocol import UsageInfo
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.exceptions import VLLMValidationError

from kvserve.policy import Facts
from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError
from kvserve.startup.options import KVOptions
from kvserve.stats import Outcome
from server.http.choice import Choice
from server.http.other_routes import PATHS as REFUSING
from server.http.plugin import KVEndpoints
from server.http.routes import PATHS
from server.http.service import Service
from server.metrics.board import Board

FACTS = Facts(num_layers=4, groups=1, block_size=16, pool_tokens=10_000, max_model_len=4096, chunk=512)
OUTCOME = Outcome("streaming", 0.25, 100, 25.0, 75.0, 0.0, 1, 10, 40)
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


class Model:
    """Stands in for vLLM's serving objects; files an outcome where the engine would."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.xargs: Any = None
        self.refuse = False

    async def create_completion(self, request: Any, raw_request: Any) -> Any:
        self.xargs = request.vllm_xargs
        if self.refuse and not request.stream:
            raise self._refused()
        if (call := (self.xargs or {}).get(wire.CALL)) is not None:
            self.service.ledger.file("a", {wire.CALL: call, **OUTCOME.record()})
        return self._stream() if request.stream else self._whole()

    def _refused(self) -> VLLMValidationError:
        """As the engine's front end refuses."""
        self.service.board.reject(PolicyError("does not fit", reason="too_long"))
        return VLLMValidationError("does not fit", parameter="kv_policy")

    def _whole(self) -> CompletionResponse:
        choice = CompletionResponseChoice(index=0, text="ü")
        return CompletionResponse(model="m", choices=[choice], usage=UsageInfo(**USAGE))

    async def _stream(self) -> AsyncIterator[str]:
        if self.refuse:
            error = {"message": str(self._refused()), "type": "BadRequestError", "param": "kv_policy", "code": 400}
            yield f"data: {json.dumps({'error': error})}\n\n"
        else:
            yield 'data: {"choices":[{"index":0,"text":"ü"}]}\n\n'
            yield f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
        yield "data: [DONE]\n\n"


def _app(default: str | None = None, facts: Facts | None = FACTS) -> FastAPI:
    app = FastAPI()
    KVEndpoints().attach_router(app)
    init_exception_handler(app)
    options = KVOptions.model_validate({"policy": default})
    board = Board()
    board.model_name, board.switched_on = "m", facts is not None
    app.state.kvserve = Service(Choice(options, facts), board, options)
    app.state.openai_serving_completion = Model(app.state.kvserve)
    app.state.args = SimpleNamespace(log_error_stack=False, sse_keep_alive_interval=0)
    return app


@pytest.fixture
def app() -> FastAPI:
    return _app()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def _post(client: TestClient, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return client.post("/v1/completions", json={"model": "m", "prompt": "x", **body}, headers=headers)


def _xargs(client: TestClient) -> Any:
    return client.app.state.openai_serving_completion.xargs  # type: ignore[attr-defined]


def test_without_a_policy_nothing_changes(client: TestClient) -> None:
    response = _post(client, vllm_xargs={"mine": 1})
    assert response.json()["usage"].get("kv_cache") is None
    assert "x-kv-policy" not in response.headers
    assert _xargs(client) == {"mine": 1}


def test_field_reaches_the_engine_and_the_outcome_comes_back(client: TestClient) -> None:
    response = _post(client, kv_policy="streaming:0.25", vllm_xargs={"mine": 1})
    assert response.status_code == 200
    assert response.json()["usage"]["kv_cache"] == OUTCOME.record()
    assert response.json()["choices"][0]["text"] == "ü"
    assert response.headers["x-kv-policy"] == "streaming:0.25"
    assert wire.parse(_xargs(client)[wire.KEY]).budget == 0.25
    assert _xargs(client)["mine"] == 1


def test_full_is_handed_on_without_a_call(client: TestClient) -> None:
    response = _post(client, kv_policy="full")
    assert "kv_cache" not in response.json()["usage"]
    assert wire.parse(_xargs(client)[wire.KEY]).name == "full"
    assert wire.CALL not in _xargs(client)


@pytest.mark.parametrize("key", [wire.CALL, wire.CANARY])
@pytest.mark.parametrize("policy", [None, "full", "streaming:0.25"])
def test_a_client_cannot_set_what_is_ours(client: TestClient, key: str, policy: str | None) -> None:
    response = _post(client, kv_policy=policy, vllm_xargs={key: ["x"]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == f"vllm_xargs.{key}"
    assert _xargs(client) is None


def test_header(client: TestClient) -> None:
    assert _post(client, {"X-KV-Policy": "knorm:64"}).headers["x-kv-policy"] == "knorm:64"
    assert _post(client, {"X-KV-Policy": "knorm:64"}, kv_policy=None).headers["x-kv-policy"] == "knorm:64"
    assert "x-kv-policy" not in _post(client, {"X-KV-Policy": "knorm:64"}, kv_policy="full").headers


def test_stream(client: TestClient, app: FastAPI) -> None:
    response = _post(client, kv_policy="streaming:0.25", stream=True)
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[0] == 'data: {"choices":[{"index":0,"text":"ü"}]}'
    assert json.loads(lines[1].removeprefix("data: "))["usage"] == {**USAGE, "kv_cache": OUTCOME.record()}
    assert lines[2] == "data: [DONE]"
    assert response.headers["x-kv-policy"] == "streaming:0.25"
    assert len(app.state.kvserve.ledger) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_a_400(client: TestClient, app: FastAPI, stream: bool) -> None:
    app.state.openai_serving_completion.refuse = True
    response = _post(client, kv_policy="streaming:0.25", stream=stream)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "kv_policy"
    assert "x-kv-policy" not in response.headers
    assert len(app.state.kvserve.ledger) == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("value", "param"),
    [("nope", "kv_policy"), (1.5, "kv_policy"), ({"name": "streaming", "x": 1}, "kv_policy.x")],
)
def test_bad_input_is_openais_error_body(client: TestClient, value: object, param: str, stream: bool) -> None:
    response = _post(client, kv_policy=value, stream=stream)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"], error["type"]) == (param, 400, "BadRequestError")


def test_rejections_are_counted_by_reason(client: TestClient, app: FastAPI) -> None:
    _post(client, kv_policy="nope")
    _post(client, {"X-KV-Policy": "streaming:0"})
    counts = app.state.kvserve.board.view().rejections
    assert (counts["unknown_policy"], counts["bad_parameter"]) == (1, 1)


def test_beam_search_is_refused(client: TestClient) -> None:
    assert _post(client, kv_policy="streaming:0.25", use_beam_search=True).status_code == 400
    assert _post(client, kv_policy="full", use_beam_search=True).status_code == 200


def test_default_policy() -> None:
    with TestClient(_app("streaming:0.25")) as client:
        assert _post(client).json()["usage"]["kv_cache"]["policy"] == "streaming"
        assert "kv_cache" not in _post(client, kv_policy="full").json()["usage"]
        assert _post(client, use_beam_search=True, kv_policy="full").status_code == 400


def test_without_kvserve_only_full_is_served() -> None:
    with TestClient(_app(facts=None)) as client:
        assert _post(client, kv_policy="full").status_code == 200
        assert _xargs(client) is None
        assert "kvserve serve" in _post(client, kv_policy="streaming").json()["error"]["message"]


def test_policies(client: TestClient) -> None:
    listed = client.get("/v1/kv/policies").json()
    assert listed["object"] == "list"
    streaming = next(card for card in listed["data"] if card["name"] == "streaming")
    assert (streaming["supported"], streaming["reason"]) == (True, None)
    assert client.get("/v1/kv/policies/streaming").json() == streaming


def test_unknown_policy_is_404_in_openais_body(client: TestClient) -> None:
    response = client.get("/v1/kv/policies/nope")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == 404


def test_stats_before_the_first_request(client: TestClient) -> None:
    stats = client.get("/v1/kv/stats").json()
    assert (stats["enabled"], stats["pool_bytes"], stats["policies"]) == (True, None, {})


def test_openapi_documents_the_field_and_the_endpoints(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/kv/policies", "/v1/kv/policies/{name}", "/v1/kv/stats"} <= set(document["paths"])
    for path in PATHS:
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        field = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]["kv_policy"]
        assert {part["type"] for part in field["anyOf"]} == {"string", "object", "null"}
        assert "X-KV-Policy" in field["description"]


@pytest.mark.parametrize("path", sorted(REFUSING))
def test_routes_without_policies_refuse_one(client: TestClient, path: str) -> None:
    assert client.post(path, json={"kv_policy": "streaming"}).status_code == 400
    assert client.post(path, json={}, headers={"X-KV-Policy": "streaming"}).status_code == 400
    assert client.post(path, json={"extra_body": {"kv_policy": "streaming"}}).status_code == 400
    assert client.post(path, json={"messages": '"kv_policy"'}).status_code == 404  # not in this small app
    assert client.post(path, content=b"[" * 100_000).status_code == 404


def test_a_default_that_cannot_act_is_refused_not_ignored() -> None:
    with TestClient(_app("streaming:0.25")) as client:
        answer = client.post("/generative_scoring", json={})
        assert answer.status_code == 400 and "by default" in answer.json()["error"]["message"]
        assert client.post("/invocations", json={"use_beam_search": True}).status_code == 400
        assert client.post("/invocations", json={}).status_code == 404
    for default in ('{"name": "streaming", "budget": 16, "at": 8}', "full", None):
        with TestClient(_app(default)) as client:
            assert client.post("/generative_scoring", json={}).status_code == 404


# -- what nothing reads ---------------------------------------------------------------------------------

MISSES: list[tuple[str, dict[str, Any]]] = [
    ("kv-policy", {"kv-policy": "streaming:0.25"}),
    ("kvPolicy", {"kvPolicy": "streaming:0.25"}),
    ("kvpolicy", {"kvpolicy": "streaming:0.25"}),
    ("KV_POLICY", {"KV_POLICY": "streaming:0.25"}),
    ("kv_polcy", {"kv_polcy": "streaming:0.25"}),
    ("kv_cache_policy", {"kv_cache_policy": "streaming:0.25"}),
    ("x-kv-policy", {"x-kv-policy": "streaming:0.25"}),
    ("extra_body.kv_policy", {"extra_body": {"kv_policy": "streaming:0.25"}}),
    ("extra_body.kv-policy", {"extra_body": {"kv-policy": "streaming:0.25"}}),
    ("extra_body.vllm_xargs.kv_policy", {"extra_body": {"vllm_xargs": {"kv_policy": "streaming:0.25"}}}),
    ("extra_headers.X-KV-Policy", {"extra_headers": {"X-KV-Policy": "streaming:0.25"}}),
    ("vllm_xargs.kvPolicy", {"vllm_xargs": {"kvPolicy": "streaming:0.25"}}),
    ("extra_args.kv_policy", {"extra_args": {"kv_policy": "streaming:0.25"}}),
]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "x"}]]},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/inference/v1/generate": {"token_ids": [5], "sampling_params": {"max_tokens": 1}},
}
"""A body of each route that takes a policy."""


def _says(answer: Any, path: str, field: str) -> None:
    """A 400 in the shape of its API that names the field and the right spelling."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert field in error["message"] and "kv_policy" in error["message"]
    if path == "/v1/messages":
        assert answer.json()["type"] == "error" and set(error) == {"type", "message"}
    else:
        assert error["param"] == field


def test_every_route_has_its_least_body() -> None:
    assert set(LEAST) == set(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_near_misses_are_refused_by_name(client: TestClient, app: FastAPI, path: str) -> None:
    for field, body in MISSES:
        _says(client.post(path, json={"model": "m", **LEAST[path], **body}), path, field)
    assert app.state.kvserve.board.view().rejections["bad_parameter"] == len(MISSES)


@pytest.mark.parametrize("path", PATHS)
def test_near_misses_of_the_header_and_in_the_address(client: TestClient, path: str) -> None:
    body = {"model": "m", **LEAST[path]}
    for name in ("X-KVPolicy", "KV-Policy", "X_KV_Policy", "X-KV-Cache-Policy", "x-kv-polcy"):
        _says(client.post(path, json=body, headers={name: "streaming"}), path, name.lower())
    _says(client.post(f"{path}?kv_policy=streaming", json=body), path, "kv_policy")


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("sampling_params.kv_policy", {"sampling_params": {"kv_policy": "streaming"}}),
        ("sampling_params.extra_args.kv-policy", {"sampling_params": {"extra_args": {"kv-policy": "streaming"}}}),
        ("sampling_params.extra_args.kv_call", {"sampling_params": {"extra_args": {"kv_call": ["x"]}}}),
        ("sampling_params.extra_args.kv_canary", {"sampling_params": {"extra_args": {"kv_canary": 1}}}),
        ("vllm_xargs.kv_policy", {"vllm_xargs": {"kv_policy": "streaming"}}),
    ],
)
def test_tokens_in_have_their_own_places(client: TestClient, field: str, given: dict[str, Any]) -> None:
    path = "/inference/v1/generate"
    answer = client.post(path, json={**LEAST[path], **given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_what_is_only_a_little_like_it_is_accepted(client: TestClient) -> None:
    more = {"policy": "streaming", "cache_policy": "a", "extra_body": {"top_k": 3}, "metadata": {"kv_policy": "mine"}}
    assert _post(client, {"X-Policy": "streaming", "X-Request-Id": "kv_policy"}, **more).status_code == 200


def test_a_policy_in_the_arguments_of_the_engine_is_one(client: TestClient) -> None:
    answer = _post(client, vllm_xargs={"kv_policy": "streaming:0.25"})
    assert answer.json()["usage"]["kv_cache"]["policy"] == "streaming"

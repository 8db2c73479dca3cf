"""The routes of shared compressed prefixes, with made-up snapshots and engines; what engines do: tests/engine."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from kvserve.startup.options import KVOptions
from kvserve.stats import EngineTotals, SharedPrefix
from server.http.choice import Choice
from server.http.plugin import KVEndpoints
from server.http.service import Service
from server.metrics.board import Board

KEY = {"Authorization": "Bearer secret"}
PATH = "/v1/kv/prefixes"
ONE = SharedPrefix(
    id="p1",
    policy="keydiff",
    budget=0.25,
    logical_tokens=800,
    kept_tokens=200.5,
    bytes=1000,
    hits=3,
    age_seconds=50.0,
    idle_seconds=20.0,
)


class Engines:
    """Stands in for vLLM's client of several engines, each with prefixes of its own."""

    def __init__(self) -> None:
        self.held: list[set[str]] = [{"p1"}, {"p2"}, set()]

    async def call_utility_all_async(self, method: str, prefix_id: str) -> list[bool]:
        assert method == "kv_drop_prefix"
        answers = [prefix_id in held for held in self.held]
        for held in self.held:
            held.discard(prefix_id)
        return answers


@pytest.fixture
def board() -> Board:
    board = Board()
    board.model_name, board.switched_on = "m", True
    return board


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def client(board: Board, engines: Engines) -> Iterator[TestClient]:
    """A server with an API key."""
    app = FastAPI()
    KVEndpoints().attach_router(app)
    app.add_middleware(AuthenticationMiddleware, tokens=["secret"])
    options = KVOptions.model_validate({})
    service = Service(Choice(options, None), board, options, engine_client=SimpleNamespace(engine_core=engines))
    app.state.kvserve = service
    with TestClient(app) as client:
        yield client


def post(board: Board, engine: int, *prefixes: SharedPrefix) -> None:
    held = sum(prefix["bytes"] for prefix in prefixes)
    board.post(engine, json.loads(EngineTotals(prefixes=list(prefixes), prefix_bytes=held).dump()))


def _listed(client: TestClient) -> Any:
    answer = client.get(PATH, headers=KEY)
    assert answer.status_code == 200
    return answer.json()


def _drop(client: TestClient, prefix_id: str) -> Any:
    return client.delete(f"{PATH}/{prefix_id}", headers=KEY)


def test_before_the_first_there_are_none(client: TestClient) -> None:
    assert _listed(client) == {"object": "list", "data": [], "prefix_bytes": 0}


def test_those_of_all_engines_last_used_first(client: TestClient, board: Board) -> None:
    post(board, 0, ONE)
    post(board, 1, {**ONE, "id": "p2", "idle_seconds": 5.0}, {**ONE, "id": "p3", "budget": 128, "idle_seconds": 30.0})
    listed = _listed(client)
    assert [each["id"] for each in listed["data"]] == ["p2", "p1", "p3"]
    assert listed["prefix_bytes"] == 3000
    first = listed["data"][1]
    assert {name: first[name] for name in first if "seconds" not in name} == {
        name: value for name, value in ONE.items() if "seconds" not in name
    }
    assert 50 <= first["age_seconds"] < 60 and 20 <= first["idle_seconds"] < 30
    assert client.get("/v1/kv/stats", headers=KEY).json()["prefix_bytes"] == 3000


def test_only_numbers_and_names_are_said(client: TestClient, board: Board) -> None:
    post(board, 0, ONE)
    assert set(_listed(client)["data"][0]) == set(SharedPrefix.__annotations__)


@pytest.mark.parametrize(("prefix_id", "left"), [("p1", ["p2"]), ("p2", ["p1"])])
def test_a_drop_asks_every_engine(
    client: TestClient, board: Board, engines: Engines, prefix_id: str, left: list[str]
) -> None:
    """Whichever of them holds it; and the list knows before an engine has spoken again."""
    post(board, 0, ONE)
    post(board, 1, {**ONE, "id": "p2"})
    answer = _drop(client, prefix_id)
    assert (answer.status_code, answer.json()) == (200, {"id": prefix_id, "deleted": True})
    assert not any(prefix_id in held for held in engines.held)
    listed = _listed(client)
    assert [each["id"] for each in listed["data"]] == left
    assert listed["prefix_bytes"] == ONE["bytes"]


def test_what_no_engine_holds_is_404_in_openais_body(client: TestClient, board: Board) -> None:
    post(board, 0, ONE, {**ONE, "id": "gone"})  # evicted since that was said
    for prefix_id in ("nope", "gone"):
        answer = _drop(client, prefix_id)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "id", 404)
        assert repr(prefix_id) in error["message"]
    assert [each["id"] for each in _listed(client)["data"]] == ["p1"]


def test_a_second_drop_finds_nothing(client: TestClient) -> None:
    assert [_drop(client, "p1").status_code for _ in range(2)] == [200, 404]


@pytest.mark.parametrize("name", ["%00", "%ff%fe", "%F0%9F%90%88", "x" * 20_000, "%ED%A0%80", " "])
def test_odd_ids(client: TestClient, name: str) -> None:
    assert _drop(client, name).status_code == 404


def test_without_kvserves_engines_there_is_nothing_to_drop(client: TestClient, board: Board) -> None:
    client.app.state.kvserve.engine_client = None  # type: ignore[attr-defined]
    assert _drop(client, "p1").status_code == 404


def test_both_need_the_key(client: TestClient, engines: Engines) -> None:
    assert client.get(PATH).status_code == 401
    assert client.delete(f"{PATH}/p1").status_code == 401
    assert "p1" in engines.held[0]


def test_openapi_documents_both(client: TestClient) -> None:
    paths = client.get("/openapi.json", headers=KEY).json()["paths"]
    assert "get" in paths[PATH]
    assert {"200", "404"} <= set(paths[f"{PATH}/{{id}}"]["delete"]["responses"])

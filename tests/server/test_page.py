"""The live page's files: what is served, and that they need nothing but this server. The page at work: test_browser."""

import json
import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from kvserve.startup.options import KVOptions
from kvserve.stats import EngineTotals, Running
from models import HARBOUR
from models.demo import QUESTION
from server.http.choice import Choice
from server.http.plugin import KVEndpoints
from server.http.service import Service
from server.metrics.board import Board

KEY = {"Authorization": "Bearer secret"}
PAGE = {file.name: file.read_text() for file in files("server").joinpath("page").iterdir()}
TYPES = {
    "/kv": "text/html; charset=utf-8",
    "/kv/style.css": "text/css; charset=utf-8",
    "/kv/app.js": "text/javascript; charset=utf-8",
    "/kv/icon.svg": "image/svg+xml",
    "/kv/harbour.txt": "text/plain; charset=utf-8",
}
ONE = Running(
    id="1a2b3c4d",
    policy="streaming",
    budget=0.25,
    stage="decode",
    logical_tokens=100,
    kept_tokens=25.5,
    resident_bytes=10,
    full_bytes=40,
)


@pytest.fixture
def board() -> Board:
    board = Board()
    board.model_name, board.switched_on = "m", True
    return board


@pytest.fixture
def client(board: Board) -> Iterator[TestClient]:
    """A server with an API key."""
    app = FastAPI()
    KVEndpoints().attach_router(app)
    app.add_middleware(AuthenticationMiddleware, tokens=["secret"])
    options = KVOptions.model_validate({})
    app.state.kvserve = Service(Choice(options, None), board, options)
    app.state.args = SimpleNamespace(log_error_stack=False)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("path", TYPES)
def test_files_need_no_key_and_have_their_types(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.headers["content-type"]) == (200, TYPES[path])
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_every_file_is_served_as_it_is(client: TestClient) -> None:
    assert len(PAGE) > 10
    assert all(client.get(f"/kv/{name}").text == text for name, text in PAGE.items())


def test_samples_ask_about_the_text_of_the_readme(client: TestClient) -> None:
    assert client.get("/kv/harbour.txt").text == HARBOUR.read_text(encoding="utf-8")
    assert '"kv/harbour.txt"' in PAGE["samples.js"] and QUESTION in PAGE["samples.js"]


@pytest.mark.parametrize("name", ["nope.js", "..%2flive.py", "%2e%2e%2flive.py", "sub/app.js", "app"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/kv/{name}").status_code == 404


def test_a_slash_at_the_end_leads_to_the_page(client: TestClient) -> None:
    """The links are relative to `/kv`, so it must not be served under `/kv/`."""
    assert client.get("/kv/", follow_redirects=True).url.path == "/kv"


def test_data_needs_the_key(client: TestClient) -> None:
    for path in ("/v1/kv/stats", "/v1/kv/policies", "/v1/kv/prefixes"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=KEY).status_code == 200


def test_no_address_outside() -> None:
    for name, text in PAGE.items():
        found = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}[^\s\"']*", text)
        assert set(found) <= {"http://www.w3.org/2000/svg"}, name


def test_no_inline_script_or_style() -> None:
    html = PAGE["index.html"]
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", html)
    assert 'setAttribute("style"' not in "".join(PAGE.values())


def test_every_reference_is_a_file() -> None:
    links = re.findall(r'(?:href|src)="([^"]+)"', PAGE["index.html"])
    assert {link.removeprefix("kv/") for link in links} <= set(PAGE)
    for text in PAGE.values():
        assert {name.removeprefix("./") for name in re.findall(r'from "([^"]+)"', text)} <= set(PAGE)


def test_every_element_that_scripts_name_is_in_the_page() -> None:
    names = set(re.findall(r'(?:\bat|getElementById)\("([\w-]+)"\)', "".join(PAGE.values())))
    assert names <= set(re.findall(r'\bid="([\w-]+)"', PAGE["index.html"]))


def test_the_package_has_the_files() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    assert "page/*" in project["tool"]["setuptools"]["package-data"]["server"]


def test_stats_list_the_running_requests_of_all_engines(client: TestClient, board: Board) -> None:
    empty = client.get("/v1/kv/stats", headers=KEY).json()
    assert (empty["running"], empty["requests_running"], empty["requests_waiting"]) == ([], 0, 0)
    for engine, waiting in ((0, 2), (1, 5)):
        totals = EngineTotals(running=[ONE], requests_running=70, requests_waiting=waiting)
        board.post(engine, json.loads(totals.dump()))
    stats = client.get("/v1/kv/stats", headers=KEY).json()
    assert stats["running"] == [dict(ONE)] * 2
    assert (stats["requests_running"], stats["requests_waiting"]) == (140, 7)

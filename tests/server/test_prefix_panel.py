"""The live page's panel of shared prefixes, in a browser, before made-up engines."""

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import uvicorn
from fastapi import FastAPI

from kvserve.startup.options import KVOptions
from server.http.choice import Choice
from server.http.plugin import KVEndpoints
from server.http.service import Service
from server.metrics.board import Board
from tests.server.browsing import chromium, complaints, look
from tests.server.running import wait_for
from tests.server.test_prefixes import ONE, Engines, post

OTHER = {**ONE, "id": "p2", "policy": "snapkv", "budget": None, "logical_tokens": 1600, "idle_seconds": 7205.0}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def board() -> Board:
    board = Board()
    board.model_name, board.switched_on = "m", True
    return board


@pytest.fixture
def page(browser: Any, board: Board) -> Iterator[Any]:
    """The page of a server without an engine."""
    app = FastAPI()
    KVEndpoints().attach_router(app)
    options = KVOptions.model_validate({})
    service = Service(Choice(options, None), board, options, engine_client=SimpleNamespace(engine_core=Engines()))
    app.state.kvserve = service
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        look(browser, "light", 1280, 1000)
        browser.get(f"http://127.0.0.1:{listening.getsockname()[1]}/kv")
        wait_for(lambda: browser.find_element("id", "status").text == "live")
        yield browser
        browser.get("about:blank")
        running.should_exit = True
        thread.join()


def _rows(page: Any) -> list[list[str]]:
    """The cells' texts, read at one moment."""
    found: list[list[str]] = page.execute_script(
        "return [...document.querySelectorAll('#prefixes tr')].map(r => [...r.cells].map(c => c.textContent.trim()))"
    )
    return found


def test_it_is_there_only_when_there_are_prefixes(page: Any, board: Board) -> None:
    panel = page.find_element("id", "prefixes-panel")
    assert not panel.is_displayed()
    post(board, 0, ONE)
    wait_for(panel.is_displayed)
    post(board, 0)
    wait_for(lambda: not panel.is_displayed())
    assert complaints(page) == []


def test_rows_are_the_prefixes_last_used_first(page: Any, board: Board) -> None:
    post(board, 0, OTHER)
    post(board, 1, ONE)
    wait_for(lambda: len(_rows(page)) == 2)
    first, second = _rows(page)
    assert first[:4] == ["keydiff:0.25", "201 of 800", "1000 B", "3"] and first[6] == "Drop"
    assert second[:4] == ["snapkv", "201 of 1,600", "1000 B", "3"] and second[5] == "2 h"
    assert page.find_element("id", "prefixes-count").text == "1.95 KiB"
    post(board, 0, {**OTHER, "idle_seconds": 1.0})
    wait_for(lambda: [row[0] for row in _rows(page)] == ["snapkv", "keydiff:0.25"])


def test_a_button_drops_its_own(page: Any, board: Board) -> None:
    post(board, 0, OTHER)
    post(board, 1, ONE)
    wait_for(lambda: len(_rows(page)) == 2)
    button = page.find_element("css selector", "[aria-label='Drop snapkv of 1,600 tokens']")
    button.click()
    wait_for(lambda: [row[0] for row in _rows(page)] == ["keydiff:0.25"])
    assert not page.find_element("id", "prefixes-problem").is_displayed()
    assert complaints(page) == []


def test_one_that_is_gone_already_is_said_to_be(page: Any, board: Board) -> None:
    post(board, 0, {**ONE, "id": "gone"}, OTHER)
    wait_for(lambda: len(_rows(page)) == 2)
    page.find_element("css selector", "#prefixes button").click()
    wait_for(lambda: "no engine holds" in page.find_element("id", "prefixes-problem").text)
    wait_for(lambda: len(_rows(page)) == 1)


@pytest.mark.parametrize("width", [1440, 800, 390])
def test_nothing_sticks_out(page: Any, board: Board, width: int) -> None:
    look(page, "light", width, 900)
    post(board, 0, ONE, OTHER)
    wait_for(lambda: len(_rows(page)) == 2)
    assert page.execute_script("return document.documentElement.scrollWidth") == width

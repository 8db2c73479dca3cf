"""Ends: of clients, of load generators, of the server. Requests end, blocks return, processes go.

The server's own ends come last in this file: the first of them ends the server that the tests before it use.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import psutil
import pytest

from tests.clients.conftest import COMMAND
from tests.clients.load import PROMPT, Stream, streams
from tests.clients.scraper import Scraper, scraping
from tests.clients.shell import Shell
from tests.clients.test_bench_serve import command
from tests.server.running import MODEL, Server, launched, wait_for, wait_until_healthy

pytest.importorskip("vllm")

LONG = 3000
"""Tokens of an answer that takes some ten seconds at least."""

EXIT_SECONDS = 60.0


class Running(NamedTuple):
    """A server whose end is looked at, and someone who has scraped it since its process was started."""

    server: Server
    process: subprocess.Popen[bytes]
    scraper: Scraper


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "log"
    with launched(log, COMMAND) as (server, process), scraping(server.url) as scraper:
        wait_until_healthy(server, process, log)
        yield Running(server, process, scraper)


def _nothing_is_held(server: Server) -> bool:
    stats = server.stats()
    return stats["running"] == [] and stats["resident_bytes"] == stats["requests_running"] == 0


def _serves(server: Server) -> bool:
    return bool(server.complete(PROMPT, "streaming:0.25", max_tokens=4).choices[0].text)


# -- the start ----------------------------------------------------------------------------------------


def test_scrapes_during_the_start(running: Running) -> None:
    """Refused until the engine is ready, which is when vLLM opens the port; from then on answered."""
    wait_for(lambda: bool(running.scraper.answers))
    scrapes = list(running.scraper.scrapes)
    first = scrapes.index(running.scraper.answers[0])
    assert first > 10
    assert all("Connection refused" in str(scrape.problem) for scrape in scrapes[:first])
    assert all(scrape.status == 200 for scrape in scrapes[first:])
    assert running.scraper.unfit == []


# -- clients ------------------------------------------------------------------------------------------

CLIENT = f"""
import sys
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1")
more = {{"ignore_eos": True, **({{"kv_policy": sys.argv[2]}} if len(sys.argv) > 2 else {{}})}}
for chunk in client.completions.create(
    model={MODEL!r}, prompt={PROMPT!r}, max_tokens={LONG}, stream=True, extra_body=more
):
    print(chunk.choices[0].text, flush=True)
"""


def test_killed_clients_give_their_blocks_back(running: Running, shell: Shell) -> None:
    server = running.server
    (shell.folder / "client.py").write_text(CLIENT)
    policies = ["", "streaming:0.25", "snapkv:0.25"]
    clients = [shell.start(f"exec python client.py {server.url} {policy}", f"client{policy}") for policy in policies]
    wait_for(lambda: all(shell.said(f"client{policy}").count("\n") > 20 for policy in policies), 60)
    assert {request["policy"] for request in server.stats()["running"]} == {"full", "streaming", "snapkv"}
    for client in clients:
        client.kill()
        client.wait()
    wait_for(lambda: _nothing_is_held(server), 10)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert _serves(server)


def test_a_killed_load_generator(running: Running, shell: Shell) -> None:
    server = running.server
    long = command(server.url).replace("--random-output-len 16", f"--random-output-len {LONG}")
    bench = shell.start("exec " + long, "bench")
    wait_for(lambda: server.stats()["requests_running"] > 0, 120)
    bench.kill()
    bench.wait()
    wait_for(lambda: _nothing_is_held(server), 10)
    assert _serves(server)


# -- the server ---------------------------------------------------------------------------------------


def _ended(process: subprocess.Popen[bytes], family: list[psutil.Process]) -> int:
    """The exit code, once nothing of the server's processes is left."""
    code = process.wait(EXIT_SECONDS)
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == [], "processes that outlive their server"
    return code


def _loaded(server: Server, tokens: int) -> list[Stream]:
    """Streams, all of which have begun."""
    loaded = streams(server, tokens)
    wait_for(lambda: all(stream.chunks > 20 for stream in loaded), 60)
    return loaded


def _told(stream: Stream) -> bool:
    """Whether a stream ended with what a client can act on: an error event, or vLLM's own word if it came in time."""
    error: Any = stream.end
    return error == "abort" or (isinstance(error, openai.APIError) and "shutting down" in error.message)


def test_sigterm_during_load(running: Running) -> None:
    """Two of them, as from an impatient supervisor."""
    server, process, scraper = running
    loaded = _loaded(server, LONG)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    sent = time.monotonic()
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert _ended(process, family) == 0
    assert all(stream.ended(5) for stream in loaded)
    assert all(_told(stream) for stream in loaded), [stream.end for stream in loaded]
    wait_for(lambda: "Connection refused" in str(scraper.scrapes[-1].problem))
    assert scraper.unfit == []
    assert scraper.answers[-1].at > sent - 1


@pytest.mark.slow
def test_ctrl_c_during_load(tmp_path: Path) -> None:
    """A terminal sends it to every process of the group: the engine's too."""
    log = tmp_path / "log"
    with launched(log, COMMAND) as (server, process), scraping(server.url) as scraper:
        wait_until_healthy(server, process, log)
        loaded = _loaded(server, LONG)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert _ended(process, family) == 0
        assert all(stream.ended(5) for stream in loaded)
        assert scraper.unfit == []


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "finished"), [(600, True), (LONG, False)])
def test_time_to_drain(tmp_path: Path, tokens: int, finished: bool) -> None:
    """What is done by then is done; what is not ends then. More signals change nothing, and scrapes go on."""
    log, seconds = tmp_path / "log", 60 if finished else 2
    command = [*COMMAND, "--shutdown-timeout", str(seconds)]
    with launched(log, command) as (server, process), scraping(server.url) as scraper:
        wait_until_healthy(server, process, log)
        loaded = _loaded(server, tokens)
        family = psutil.Process(process.pid).children(recursive=True)
        sent = time.monotonic()
        for again in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(again)
            time.sleep(0.1)
        assert all(stream.ended(60) for stream in loaded)
        assert all(stream.end == "length" if finished else _told(stream) for stream in loaded)
        assert _ended(process, family) == 0
        assert scraper.unfit == []
        assert sum(scrape.at > sent for scrape in scraper.answers) > 5

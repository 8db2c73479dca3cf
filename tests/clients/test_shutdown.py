"""Signals to a server under load: requests end, processes go, scrapes are answered as long as anyone is there.

The first test ends the server that the tests of all other files here share, which come before by their names.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.clients.conftest import COMMAND, RunningServer
from tests.clients.load import LONG, Stream, streams
from tests.clients.scraper import scraping
from tests.server.running import ServerUnderTest, launched, wait_for

pytest.importorskip("vllm")

EXIT_SECONDS = 60.0


def _ended(process: subprocess.Popen[bytes], family: list[psutil.Process]) -> int:
    """The exit code, once nothing of the server's processes is left."""
    code = process.wait(EXIT_SECONDS)
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == [], "processes that outlive their server"
    return code


def _loaded(server: ServerUnderTest, tokens: int) -> list[Stream]:
    """Streams, all of which have begun."""
    loaded = streams(server, tokens)
    wait_for(lambda: all(stream.chunks > 20 for stream in loaded), 60)
    return loaded


def _told(stream: Stream) -> bool:
    """Whether a stream ended with what a client can act on: an error event, or vLLM's own word if it came in time."""
    error: Any = stream.end
    return error == "abort" or (isinstance(error, openai.APIError) and "shutting down" in error.message)


def test_sigterm_during_load(running: RunningServer) -> None:
    """Two of them, as from an impatient supervisor."""
    server, process = running.server, running.process
    with scraping(server.url) as scraper:
        loaded = _loaded(server, LONG)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        sent = time.monotonic()
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert _ended(process, family) == 0
        assert all(stream.ended(5) for stream in loaded)
        ends = [stream.end for stream in loaded]
        # On a busy machine a client may still read what a server finished before the signal.
        assert all(_told(stream) or stream.end == "length" for stream in loaded), ends
        assert any(_told(stream) for stream in loaded), ends
        wait_for(lambda: "Connection refused" in str(scraper.scrapes[-1].problem))
    assert scraper.unfit == []
    assert scraper.answers[-1].at > sent - 1


@pytest.mark.slow
def test_ctrl_c_during_load(tmp_path: Path) -> None:
    """A terminal sends it to every process of the group: the engine's too."""
    log = tmp_path / "log"
    with launched(log, COMMAND) as server, scraping(server.url) as scraper:
        server.wait_until_healthy()
        process = server.process
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
    with launched(log, command) as server, scraping(server.url) as scraper:
        server.wait_until_healthy()
        process = server.process
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

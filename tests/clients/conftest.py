"""One real server for all clients, looked at from its start; test_shutdown ends it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.scraper import Scraper, scraping
from tests.clients.shell import Shell
from tests.server.running import ServerUnderTest, launched, wait_for

COMMAND = "kvserve serve mini --max-model-len 4096".split()


class RunningServer(NamedTuple):
    """A server, its process, and who scraped it from the start of that until a moment after it was healthy."""

    server: ServerUnderTest
    process: subprocess.Popen[bytes]
    start: Scraper


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    pytest.importorskip("vllm")
    log = tmp_path_factory.mktemp("server") / "log"
    with launched(log, COMMAND) as server:
        with scraping(server.url) as scraper:
            server.wait_until_healthy()
            wait_for(lambda: len(scraper.answers) > 5)
        yield RunningServer(server, server.process, scraper)


@pytest.fixture(scope="package")
def server(running: RunningServer) -> ServerUnderTest:
    return running.server


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(tmp_path)
    yield opened
    opened.close()

"""One real server for all clients but those that end theirs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.shell import Shell
from tests.server.running import Server, serving

COMMAND = "kvserve serve --max-model-len 4096".split()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("vllm")
    with serving(tmp_path_factory.mktemp("server") / "log", COMMAND) as running:
        yield running


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)

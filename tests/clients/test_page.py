"""The small clients of docs/clients.md."""

import json
import shutil

import pytest

from tests.clients.page import PAGE, block
from tests.clients.shell import Shell
from tests.server.running import ServerUnderTest


def test_openais_client_with_field_and_with_header(server: ServerUnderTest, shell: Shell) -> None:
    sections = {"field": "OpenAI's client", "header": "Frameworks that only let you set headers"}
    code = {log: block(section, "python", 0, server.url) for log, section in sections.items()}
    said = shell.finished(**{log: shell.python(text, log) for log, text in code.items()})
    assert all(text.startswith("{'policy': 'streaming', 'budget': 0.25, ") for text in said.values())


def test_curl(server: ServerUnderTest, shell: Shell) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    environment = PAGE.read_text(encoding="utf-8").partition("```sh\n")[2].partition("```")[0]
    said = shell.finished(curl=shell.start(environment + block("curl", "sh", 0, server.url), "curl"))
    assert json.loads(said["curl"])["usage"]["kv_cache"]["policy"] == "streaming"

"""guidellm, as docs/clients.md shows it, with a policy and without."""

import json

import pytest

from tests.clients.page import block, without
from tests.clients.shell import Shell
from tests.server.running import ServerUnderTest, wait_for

pytest.importorskip("guidellm", reason="needs the extra `load`: pip install -e .[load]")

POLICY = """, "extras": {"body": {"kv_policy": "streaming:0.25"}}"""
REQUESTS, TOKENS = 6, 16


def test_with_and_without_a_policy(server: ServerUnderTest, shell: Shell) -> None:
    def done(policy: str) -> float:
        return server.metric("kvserve_requests_total", policy=policy)

    before = done("streaming"), done("full")
    command = block("guidellm", "sh", 0, server.url)
    plain = without(command, POLICY).replace("guidellm.json", "plain.json")
    shell.finished(compressed=shell.start(command, "compressed"), plain=shell.start(plain, "plain"))
    for file in ("guidellm.json", "plain.json"):
        [benchmark] = json.loads((shell.folder / file).read_text())["benchmarks"]
        totals = benchmark["metrics"]["request_totals"]
        assert (totals["successful"], totals["errored"]) == (REQUESTS, 0)
        assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] == TOKENS
    wait_for(lambda: done("streaming") == before[0] + REQUESTS and done("full") == before[1] + REQUESTS)

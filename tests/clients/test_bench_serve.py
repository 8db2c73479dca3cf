"""`vllm bench serve`, as docs/clients.md shows it, with a policy and without."""

import json
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from tests.clients.page import block, without
from tests.clients.shell import Shell
from tests.server.running import ServerUnderTest, wait_for

POLICY = """--extra-body '{"kv_policy": "streaming:0.25"}'"""
REQUESTS, TOKENS = 6, 16


def command(url: str) -> str:
    """The page's command; by the name that the page gives it where vLLM is the CPU wheel."""
    found = block("vllm bench serve", "sh", 0, url)
    try:
        distribution("vllm")
    except PackageNotFoundError:
        return found.replace("vllm bench serve", "python -m loadtests.bench_serve")
    return found


@pytest.mark.parametrize("header", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_with_and_without_a_policy(server: ServerUnderTest, shell: Shell, header: bool) -> None:
    def done(policy: str) -> float:
        return server.metric("kvserve_requests_total", policy=policy)

    before = done("streaming"), done("full")
    field = command(server.url)
    compressed = field.replace(POLICY, "--header X-KV-Policy=streaming:0.25") if header else field
    plain = without(field, POLICY).replace("bench.json", "plain.json")
    shell.finished(compressed=shell.start(compressed, "compressed"), plain=shell.start(plain, "plain"))
    for file in ("bench.json", "plain.json"):
        result = json.loads((shell.folder / file).read_text())
        assert (result["completed"], result["failed"]) == (REQUESTS, 0)
        assert result["total_output_tokens"] == REQUESTS * TOKENS
        assert result["output_throughput"] > 0
    # vLLM's client sends one request more, to see whether the server is there
    wait_for(lambda: done("streaming") - before[0] >= REQUESTS and done("full") - before[1] >= REQUESTS)
    assert done("streaming") - before[0] <= REQUESTS + 1
    assert done("full") - before[1] <= REQUESTS + 1

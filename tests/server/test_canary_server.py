"""A real server with a canary: what it finds is true, and no client notices."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from models.demo import codes
from tests.server.running import MODEL, ServerUnderTest, serving, wait_for

pytest.importorskip("vllm")

STOCK = (
    "vllm:request_success_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:time_to_first_token_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:prefix_cache_queries_total",
    "kvserve_requests_total",
    "kvserve_prompt_tokens_total",
    "kvserve_generation_tokens_total",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[ServerUnderTest]:
    command = ["kvserve", "serve", "mini", "--kv-canary", "1.0", "--max-model-len", "8192", "--enable-log-requests"]
    with serving(log, command) as running:
        yield running


def _count(server: ServerUnderTest, name: str, **labels: str) -> int:
    return round(server.metric(f"kvserve_{name}", **labels))


def _judged(server: ServerUnderTest) -> int:
    return _count(server, "canary_replays_total", outcome="judged")


def _settled(server: ServerUnderTest) -> None:
    wait_for(lambda: _count(server, "canary_waiting") == 0, 60)


def _quality(server: ServerUnderTest, name: str, policy: str) -> float:
    """Sum over requests."""
    return server.metric(f"kvserve_quality_{name}_sum", policy=policy)


def _chat(server: ServerUnderTest, seed: int, policy: Any, **more: Any) -> list[int]:
    """Tokens of a greedy answer."""
    extra = {"kv_policy": policy, "return_token_ids": True} | more.pop("extra_body", {})
    wanted = {"model": MODEL, "messages": codes(seed, 1000), "max_tokens": 20, "temperature": 0, "extra_body": extra}
    tokens: list[int] = server.client.chat.completions.create(**wanted | more).choices[0].token_ids  # type: ignore
    return tokens


def _tokens(count: int) -> list[int]:
    return random.Random(count).choices(range(10, 2000), k=count)


def test_where_nothing_is_evicted_all_agree(server: ServerUnderTest) -> None:
    before, policy = _judged(server), "knorm:4096"
    text = {"model": MODEL, "temperature": 0, "extra_body": {"kv_policy": policy}}
    server.complete(_tokens(300), policy)
    _chat(server, 1, policy)
    _chat(server, 2, policy, stop=["is"])
    server.client.responses.create(**text, input="Hello there", max_output_tokens=8)  # type: ignore[call-overload]
    for _ in server.complete([_tokens(200), _tokens(100)], policy, stream=True, max_tokens=4):
        pass
    wait_for(lambda: _judged(server) == before + 6, 60)
    for name in ("agreement", "same_prefix"):
        assert _count(server, f"quality_{name}_bucket", policy="knorm", le="0.999") == 0
        assert _count(server, f"quality_{name}_bucket", policy="knorm", le="1.0") == 6


def test_same_prefix_is_what_the_full_cache_says_by_itself(server: ServerUnderTest) -> None:
    before, expected = _judged(server), 0.0
    for seed in range(4):
        full, short = _chat(server, seed, "full"), _chat(server, seed, "streaming:0.1")
        same = next((i for i, (a, b) in enumerate(zip(full, short, strict=False)) if a != b), len(short))
        expected += same / len(short)
    wait_for(lambda: _judged(server) == before + 4, 60)
    assert expected < 3.5  # it cannot know the code
    assert _quality(server, "same_prefix", "streaming") == pytest.approx(expected)
    assert expected <= _quality(server, "agreement", "streaming") < 4


def test_no_count_of_clients_requests_has_them(server: ServerUnderTest, log: Path) -> None:
    _settled(server)
    before = {name: server.metric(name) for name in STOCK}
    judged = _judged(server)
    _chat(server, 7, {"name": "tova", "budget": 0.5})
    wait_for(lambda: _judged(server) == judged + 1, 60)
    after = {name: server.metric(name) for name in STOCK}
    grown = {name: after[name] - before[name] for name in STOCK}
    assert all(grown[name] == 1 for name in STOCK if "requests_total" in name or name.endswith("_count")), grown
    assert grown["vllm:prompt_tokens_total"] == grown["vllm:prefix_cache_queries_total"] < 1100
    assert grown["kvserve_prompt_tokens_total"] == grown["vllm:prompt_tokens_total"]
    assert "Added request" in log.read_text() and "kvserve-canary" not in log.read_text()


def test_what_cannot_be_judged_is_counted(server: ServerUnderTest) -> None:
    before = {reason: _count(server, "canary_skipped_total", reason=reason) for reason in ("sampled", "constrained")}
    asked = _judged(server)
    _chat(server, 3, "streaming:0.25", temperature=0.7, n=2)
    _chat(server, 3, "streaming:0.25", extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    _chat(server, 3, "full")
    after = {reason: _count(server, "canary_skipped_total", reason=reason) for reason in before}
    assert after == {"sampled": before["sampled"] + 2, "constrained": before["constrained"] + 1}
    assert _count(server, "canary_waiting") == 0 and _judged(server) == asked


def test_requests_do_not_wait_for_a_replay(server: ServerUnderTest) -> None:
    """Compacted between its chunks, a prompt is not in the prefix cache: its replay reads all of it."""
    _settled(server)
    before = _count(server, "canary_replays_total", outcome="interrupted")
    judged = _judged(server)

    def first_token() -> float:
        begin = time.monotonic()
        server.complete(_tokens(20), max_tokens=1)
        return time.monotonic() - begin

    alone = max(first_token() for _ in range(5))
    begin = time.monotonic()
    server.complete(_tokens(7000), {"name": "streaming", "budget": 256, "prefill": "chunks"}, max_tokens=2)
    long = time.monotonic() - begin
    while _count(server, "canary_replays_total", outcome="interrupted") == before:
        assert _judged(server) == judged, "the replay was over before any request came"
        time.sleep(1.1)  # a replay begins when there was nothing for a second
        assert first_token() < alone + long / 2
    wait_for(lambda: _judged(server) == judged + 1, 60)  # put back, and judged when there was time


def test_a_client_cannot_hide_as_a_replay(server: ServerUnderTest) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.complete("Hello", extra_body={"vllm_xargs": {"kv_canary": 1}})
    assert caught.value.param == "vllm_xargs.kv_canary"

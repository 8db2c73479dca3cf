"""Two engines, each with a pool of its own, behind two API processes: what they count adds up."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.running import MODEL, serving, wait_for
from tests.server.test_counts import block_bytes

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

BLOCKS = 23  # of 128 tokens, in each engine
POLICIES = ["streaming:0.25", "knorm:0.5", "full"]
SUMS = {"compactions": "compactions", "tokens_evicted": "evicted_tokens", "tokens_merged": "merged_tokens"}


def _tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, 2000), k=count)


def test_engines_add_up(tmp_path: Path) -> None:
    """Also with --disable-log-stats, which engines that are started apart from the API processes would obey."""
    command = [
        "kvserve",
        "serve",
        "mini",
        "--data-parallel-size",
        "2",
        "--disable-log-stats",
        "--max-model-len",
        "4096",
    ]
    command += ["--kv-resident-tokens", "2048", "--num-gpu-blocks-override", str(BLOCKS + 1)]
    with serving(tmp_path / "log", command, as_users_do=True) as server:

        def ask(number: int) -> Any:
            return server.complete(_tokens(600, number), POLICIES[number % 3]).usage

        with ThreadPoolExecutor(6) as pool:
            usages = list(pool.map(ask, range(24)))
        wait_for(lambda: server.metric("kvserve_requests_total") == 24)
        by_engine = [server.metric("vllm:request_success_total", engine=engine) for engine in "01"]
        assert sum(by_engine) == 24 and min(by_engine) > 0
        assert server.metric("kvserve_kv_pool_bytes") == 2 * BLOCKS * block_bytes() == server.stats()["pool_bytes"]
        for i, policy in enumerate(POLICIES[:2]):
            caches = [usage.kv_cache for usage in usages[i::3]]
            for name, field in SUMS.items():
                counted = server.metric(f"kvserve_{name}_total", policy=policy.partition(":")[0])
                assert counted == pytest.approx(sum(cache[field] for cache in caches))
        with pytest.raises(openai.BadRequestError, match="KV cache holds"):  # in one engine, not in both together
            server.client.completions.create(model=MODEL, prompt=_tokens(3500, 0), max_tokens=1)
        assert server.metric("kvserve_policy_rejections_total", reason="too_long") == 1


def test_a_prefix_is_dropped_in_whichever_engine_it_is(tmp_path: Path) -> None:
    command = ["kvserve", "serve", "mini", "--data-parallel-size", "2", "--max-model-len", "4096"]
    command += ["--kv-resident-tokens", "2048", "--num-gpu-blocks-override", str(BLOCKS + 1)]
    with serving(tmp_path / "log", command) as server:
        for number in range(6):
            policy = {"name": "keydiff", "budget": 0.5, "at": 500, "share": True}
            server.complete(_tokens(600, number), policy, max_tokens=200)

        def held() -> list[str]:
            return [each["id"] for each in server.http.get("/v1/kv/prefixes").json()["data"]]

        wait_for(lambda: len(held()) == 6)
        for prefix_id in held():
            assert server.http.delete(f"/v1/kv/prefixes/{prefix_id}").json()["deleted"]
            assert server.http.delete(f"/v1/kv/prefixes/{prefix_id}").status_code == 404
        assert held() == []

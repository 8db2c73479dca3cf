"""What /metrics shows, from made-up snapshots."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

import server.metrics.metrics
from kvserve.channels import add_totals, take_totals
from kvserve.policy.errors import PolicyError
from kvserve.stats import SECONDS, SHARES, EngineTotals
from server.canary.canary import CanaryFindings
from server.canary.replay import Judgement
from server.metrics.board import Board
from server.metrics.metrics import KVCollector, KVStatLogger, export

CONTRACT = {
    "kvserve_requests_total": "counter",
    "kvserve_prompt_tokens_total": "counter",
    "kvserve_generation_tokens_total": "counter",
    "kvserve_compactions_total": "counter",
    "kvserve_tokens_evicted_total": "counter",
    "kvserve_tokens_merged_total": "counter",
    "kvserve_blocks_freed_total": "counter",
    "kvserve_compaction_seconds": "histogram",
    "kvserve_kept_fraction": "histogram",
    "kvserve_kv_bytes": "gauge",
    "kvserve_kv_pool_bytes": "gauge",
    "kvserve_policy_rejections_total": "counter",
    "kvserve_policy_errors_total": "counter",
    "kvserve_pressure_compactions_total": "counter",
    "kvserve_preemptions_avoided_total": "counter",
    "kvserve_prefix_hits_total": "counter",
    "kvserve_prefix_tokens_total": "counter",
    "kvserve_prefix_bytes": "gauge",
    "kvserve_build_info": "gauge",
}

CANARY = {
    "kvserve_quality_agreement": "histogram",
    "kvserve_quality_same_prefix": "histogram",
    "kvserve_canary_replays_total": "counter",
    "kvserve_canary_skipped_total": "counter",
    "kvserve_canary_waiting": "gauge",
}
"""With --kv-canary only."""


def _config(scheduler: str | None) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls=scheduler),
        model_config=SimpleNamespace(served_model_name="m"),
    )


ON, OFF = _config("kvserve.engine.scheduler.KVScheduler"), _config(None)


def _stats(requests: int = 3) -> Any:
    totals = EngineTotals(resident_bytes=100, full_bytes=400, pool_bytes=1000, preemptions_avoided=1, prefix_bytes=30)
    policy = totals.of("streaming")
    policy.requests, policy.compactions, policy.evicted, policy.blocks_freed = requests, 5, 750.5, 40
    policy.prefix_hits, policy.prefix_tokens = 2, 1600
    policy.seconds.add(SECONDS, 0.0007)
    policy.seconds.add(SECONDS, 99.0)
    policy.kept.add(SHARES, 0.25)
    stats = SimpleNamespace(num_kv_fetch_reqs_by_stage={"waiting": 2})
    add_totals(stats, totals.dump())
    return stats


def _post(board: Board, engine: int = 0, requests: int = 3) -> None:
    snapshot = take_totals(_stats(requests))
    assert snapshot is not None
    board.post(engine, snapshot)


def _samples(board: Board) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    export(board, registry)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}


@pytest.fixture
def board() -> Board:
    board = Board()
    board.serves(ON, True)
    return board


def test_names_and_types_are_those_of_the_contract(board: Board) -> None:
    _post(board)
    registry = CollectorRegistry()
    export(board, registry)
    found = dict(
        line.split()[2:4] for line in generate_latest(registry).decode().splitlines() if line.startswith("# TYPE")
    )
    assert found == CONTRACT


def test_a_canary_adds_its_own(board: Board) -> None:
    _post(board)
    board.findings = findings = CanaryFindings()
    findings.expect("streaming")
    findings.judge("streaming", Judgement(agreement=0.75, same_prefix=1.0))
    findings.skipped["sampled"] += 2
    registry = CollectorRegistry()
    export(board, registry)
    lines = generate_latest(registry).decode().splitlines()
    assert dict(line.split()[2:4] for line in lines if line.startswith("# TYPE")) == CONTRACT | CANARY
    samples = _samples(board)

    def at(name: str, edge: str) -> float:
        return samples[f"kvserve_quality_{name}_bucket", *sorted((edge, "m", "streaming"))]

    assert (at("agreement", "0.7"), at("agreement", "0.8")) == (0, 1)
    assert (at("same_prefix", "0.999"), at("same_prefix", "1.0")) == (0, 1)
    assert samples["kvserve_canary_replays_total", "judged", "m"] == 1
    assert samples["kvserve_canary_replays_total", "interrupted", "m"] == 0
    assert samples["kvserve_canary_skipped_total", "m", "sampled"] == 2


def test_values(board: Board) -> None:
    _post(board)
    samples = _samples(board)
    assert samples["kvserve_requests_total", "m", "streaming"] == 3
    assert samples["kvserve_tokens_evicted_total", "m", "streaming"] == 750.5
    assert samples["kvserve_kv_bytes", "m", "resident"] == 100
    assert samples["kvserve_kv_bytes", "full", "m"] == 400
    assert samples["kvserve_kv_pool_bytes", "m"] == 1000
    assert samples["kvserve_preemptions_avoided_total", "m"] == 1
    assert samples["kvserve_prefix_hits_total", "m", "streaming"] == 2
    assert samples["kvserve_prefix_tokens_total", "m", "streaming"] == 1600
    assert samples["kvserve_prefix_bytes", "m"] == 30


def test_histograms_are_cumulative(board: Board) -> None:
    _post(board)
    samples = _samples(board)

    def at(name: str, edge: str) -> float:
        return samples[name, *sorted((edge, "m", "streaming"))]

    assert at("kvserve_compaction_seconds_bucket", "0.0005") == 0
    assert at("kvserve_compaction_seconds_bucket", "0.001") == 1
    assert at("kvserve_compaction_seconds_bucket", "2.5") == 1
    assert at("kvserve_compaction_seconds_bucket", "+Inf") == 2
    assert samples["kvserve_compaction_seconds_count", "m", "streaming"] == 2
    assert samples["kvserve_compaction_seconds_sum", "m", "streaming"] == pytest.approx(99.0007)
    assert at("kvserve_kept_fraction_bucket", "0.2") == 0
    assert at("kvserve_kept_fraction_bucket", "0.25") == 1


def test_engines_add_up_and_a_newer_snapshot_replaces(board: Board) -> None:
    _post(board, engine=0, requests=3)
    _post(board, engine=1, requests=4)
    _post(board, engine=0, requests=6)
    samples = _samples(board)
    assert samples["kvserve_requests_total", "m", "streaming"] == 10
    assert samples["kvserve_kv_pool_bytes", "m"] == 2000
    assert samples["kvserve_prefix_tokens_total", "m", "streaming"] == 3200
    assert samples["kvserve_prefix_bytes", "m"] == 60
    assert samples["kvserve_compaction_seconds_count", "m", "streaming"] == 4


def test_rejections_count_once_per_http_request(board: Board) -> None:
    error = PolicyError("x", reason="too_long")
    board.begin()
    board.reject(error)
    board.reject(error)  # the second prompt of the same request
    board.begin()
    board.reject(error)
    assert _samples(board)["kvserve_policy_rejections_total", "m", "too_long"] == 2
    assert _samples(board)["kvserve_policy_rejections_total", "m", "unknown_policy"] == 0


def test_without_kvserve_only_the_build_is_shown() -> None:
    board = Board()
    board.serves(OFF, False)
    assert {name for name, *_ in _samples(board)} == {"kvserve_build_info"}


def test_before_the_first_report_there_are_zeros_and_no_pool(board: Board) -> None:
    samples = _samples(board)
    assert samples["kvserve_kv_bytes", "m", "resident"] == 0
    assert samples["kvserve_preemptions_avoided_total", "m"] == 0
    assert samples["kvserve_prefix_bytes", "m"] == 0
    assert ("kvserve_kv_pool_bytes", "m") not in samples


def test_a_scrape_while_engines_report(board: Board) -> None:
    """vLLM scrapes in a thread of its own; new engines, policies and reasons may appear meanwhile."""
    stop = threading.Event()

    def scrape() -> int:
        scrapes = 0
        while not stop.is_set():
            _samples(board)
            scrapes += 1
        return scrapes

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        for engine in range(300):
            _post(board, engine)
            board.begin()
            board.reject(PolicyError("x", reason=f"reason {engine}"))
        stop.set()
        assert scraping.result() > 0
    assert _samples(board)["kvserve_requests_total", "m", "streaming"] == 900


def test_shown_where_processes_share_a_folder(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scrape then makes a registry with nothing but a MultiProcessCollector in it."""
    monkeypatch.setattr(MultiProcessCollector, "collect", MultiProcessCollector.collect)
    server.metrics.metrics._join_multiprocess(KVCollector(board))
    _post(board)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    assert b'kvserve_requests_total{model_name="m",policy="streaming"} 3.0' in generate_latest(registry)


def test_stat_logger_may_be_made_many_times(monkeypatch: pytest.MonkeyPatch, board: Board) -> None:
    registry = CollectorRegistry()
    monkeypatch.setattr(server.metrics.metrics, "board", board)
    monkeypatch.setattr(server.metrics.metrics, "export", lambda source: export(source, registry))
    loggers = [KVStatLogger(ON, index) for index in (0, 1, 0)]
    stats = _stats()
    loggers[0].record(stats, None, engine_idx=0)
    loggers[1].record(None, None, engine_idx=1)
    assert stats.num_kv_fetch_reqs_by_stage == {"waiting": 2}
    assert board.view().totals.policies["streaming"].requests == 3


def test_stat_logger_leaves_stock_engines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.metrics.metrics, "board", Board())
    stats = SimpleNamespace(num_kv_fetch_reqs_by_stage={"waiting": 2})
    KVStatLogger(OFF).record(stats, None)
    assert not server.metrics.metrics.board.view().reported

"""Prometheus metrics, beside vLLM's own on /metrics.

A collector and not metric objects, because the engine counts and an API process only shows its latest snapshot.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any
from weakref import WeakSet

from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString
from vllm.v1.metrics.loggers import StatLoggerBase

import kvserve
from kvserve.channels import take_totals
from kvserve.startup.options import switched_on
from kvserve.startup.version import vllm_version
from kvserve.stats import SECONDS, SHARES, Histogram
from server.canary.canary import QUALITY, CanaryFindings
from server.metrics.board import Board, View, board

COUNTERS = {
    "requests": ("kvserve_requests", "Requests finished"),
    "prompt_tokens": ("kvserve_prompt_tokens", "Prompt tokens processed, with those found in the prefix cache"),
    "generated_tokens": ("kvserve_generation_tokens", "Tokens generated"),
    "compactions": ("kvserve_compactions", "Times that a request's cache was compacted"),
    "evicted": (
        "kvserve_tokens_evicted",
        "Tokens evicted, per layer (mean over layers); what a preemption makes evict again counts once",
    ),
    "merged": ("kvserve_tokens_merged", "Tokens merged into others, per layer (mean over layers)"),
    "blocks_freed": ("kvserve_blocks_freed", "KV-cache blocks given back by compactions"),
    "pressure_compactions": (
        "kvserve_pressure_compactions",
        "Compactions made because the pool ran out of blocks",
    ),
    "errors": ("kvserve_policy_errors", "Requests that ended with an error because their policy's own code failed"),
    "prefix_hits": ("kvserve_prefix_hits", "Requests that started from a shared compressed prefix"),
    "prefix_tokens": ("kvserve_prefix_tokens", "Prompt tokens not read, because a shared compressed prefix has them"),
}
HISTOGRAMS = {
    "seconds": ("kvserve_compaction_seconds", "Time that one compaction took on a worker, seconds", SECONDS),
    "kept": ("kvserve_kept_fraction", "Share of a request's tokens still held at its end", SHARES),
}
QUALITIES = {
    "agreement": (
        "kvserve_quality_agreement",
        "Share of a compressed greedy request's tokens that are the full cache's first choice after the same tokens "
        "(canary)",
    ),
    "same_prefix": (
        "kvserve_quality_same_prefix",
        "Share of a compressed greedy request's tokens before the first that the full cache would not have chosen "
        "(canary)",
    ),
}

_exported: WeakSet[CollectorRegistry] = WeakSet()


class KVCollector(Collector):
    """Reads a board at each scrape."""

    def __init__(self, source: Board) -> None:
        self._board = source

    def collect(self) -> Iterator[Metric]:
        yield self._build_info()
        if self._board.switched_on:
            view = self._board.view()
            yield self._rejections(view)
            yield from self._engine(view)
            yield from self._policies(view)
            if self._board.findings is not None:
                yield from self._canary(self._board.findings)

    def _build_info(self) -> Metric:
        info = GaugeMetricFamily("kvserve_build_info", "Versions; the value is always 1", labels=["version", "vllm"])
        info.add_metric([kvserve.__version__, vllm_version() or "unknown"], 1)
        return info

    def _rejections(self, view: View) -> Metric:
        family = CounterMetricFamily(
            "kvserve_policy_rejections",
            "Requests refused because of their kv_policy",
            labels=["model_name", "reason"],
        )
        for reason, count in view.rejections.items():
            family.add_metric([self._board.model_name, reason], count)
        return family

    def _engine(self, view: View) -> Iterator[Metric]:
        model, totals = self._board.model_name, view.totals
        held = GaugeMetricFamily(
            "kvserve_kv_bytes",
            "Bytes of KV-cache blocks of the running requests: held now (resident), and what the same "
            "requests would hold uncompressed (full)",
            labels=["model_name", "state"],
        )
        held.add_metric([model, "resident"], totals.resident_bytes)
        held.add_metric([model, "full"], totals.full_bytes)
        yield held
        pool = GaugeMetricFamily("kvserve_kv_pool_bytes", "Bytes of all KV-cache blocks", labels=["model_name"])
        if view.reported:  # its size is not known before the first report
            pool.add_metric([model], totals.pool_bytes)
        yield pool
        shared = GaugeMetricFamily(
            "kvserve_prefix_bytes",
            "Bytes of KV-cache blocks that hold shared compressed prefixes",
            labels=["model_name"],
        )
        shared.add_metric([model], totals.prefix_bytes)
        yield shared
        avoided = CounterMetricFamily(
            "kvserve_preemptions_avoided",
            "Times that compacting a request saved another one from preemption",
            labels=["model_name"],
        )
        avoided.add_metric([model], totals.preemptions_avoided)
        yield avoided

    def _policies(self, view: View) -> Iterator[Metric]:
        model, policies = self._board.model_name, view.totals.policies
        for field, (name, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["model_name", "policy"])
            for policy, totals in policies.items():
                counter.add_metric([model, policy], getattr(totals, field))
            yield counter
        for field, (name, text, edges) in HISTOGRAMS.items():
            family = HistogramMetricFamily(name, text, labels=["model_name", "policy"])
            for policy, totals in policies.items():
                value: Histogram = getattr(totals, field)
                family.add_metric([model, policy], buckets(edges, value), value.total)
            yield family

    def _canary(self, findings: CanaryFindings) -> Iterator[Metric]:
        model = self._board.model_name
        for field, (name, text) in QUALITIES.items():
            family = HistogramMetricFamily(name, text, labels=["model_name", "policy"])
            for policy, quality in findings.quality[field].copy().items():
                family.add_metric([model, policy], buckets(QUALITY, quality), quality.total)
            yield family
        for name, text, label, counts in (
            ("kvserve_canary_replays", "Replays of the canary by what became of them", "outcome", findings.outcomes),
            ("kvserve_canary_skipped", "Requests that the canary cannot judge", "reason", findings.skipped),
        ):
            counter = CounterMetricFamily(name, text, labels=["model_name", label])
            for value_of_label, count in counts.items():
                counter.add_metric([model, value_of_label], count)
            yield counter
        waiting = GaugeMetricFamily(
            "kvserve_canary_waiting", "Replays that wait for an idle engine", labels=["model_name"]
        )
        waiting.add_metric([model], findings.waiting)
        yield waiting


def buckets(edges: tuple[float, ...], histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts by upper edge, as Prometheus wants them."""
    names = [*map(floatToGoString, edges), "+Inf"]
    return list(zip(names, accumulate(histogram.counts), strict=True))


def export(source: Board, registry: CollectorRegistry = REGISTRY) -> None:
    """Register a collector of `source`; the first one of a registry stays."""
    if registry not in _exported:
        _exported.add(registry)
        registry.register(KVCollector(source))
        if registry is REGISTRY:
            _join_multiprocess(KVCollector(source))


def _join_multiprocess(ours: Collector) -> None:
    """Show `ours` where several processes share PROMETHEUS_MULTIPROC_DIR too.

    There each scrape makes a registry of its own, with nothing but a MultiProcessCollector in it; in a process without
    that variable there is none.
    """
    stock = MultiProcessCollector.collect

    def collect(self: MultiProcessCollector) -> Iterator[Metric]:
        yield from stock(self)
        yield from ours.collect()

    MultiProcessCollector.collect = collect  # type: ignore[method-assign]


class KVStatLogger(StatLoggerBase):
    """vLLM's `stat_logger_plugins` entry point: one object per engine, any number per process."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._on = switched_on(vllm_config)
        board.serves(vllm_config, self._on)
        export(board)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Take the snapshot out of vLLM's statistics, if there is one."""
        if not self._on or scheduler_stats is None:
            return
        snapshot = take_totals(scheduler_stats)
        if snapshot is not None:
            board.post(engine_idx, snapshot)

    def log_engine_initialized(self) -> None:
        """vLLM calls this to log its configuration; `kvserve doctor` shows ours."""

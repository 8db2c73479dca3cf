"""PromQL, limited to what the dashboard's variables select."""

import re

RATE = "$__rate_interval"
"""Grafana's own window: at least four scrapes long."""

SCOPE = 'job=~"$job", model_name=~"$model_name", instance=~"$instance"'
POLICY = f'{SCOPE}, policy=~"$policy"'

KV_BYTES = "kvserve_kv_bytes"
POOL_BYTES = "kvserve_kv_pool_bytes"
PREFIX_BYTES = "kvserve_prefix_bytes"
KEPT = "kvserve_kept_fraction"
COMPACTION = "kvserve_compaction_seconds"
AGREEMENT = "kvserve_quality_agreement"
REJECTIONS = "kvserve_policy_rejections_total"
PREEMPTIONS = "vllm:num_preemptions_total"
AVOIDED = "kvserve_preemptions_avoided_total"
POOL_USE = "vllm:kv_cache_usage_perc"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"


def gauge(metric: str, more: str = "", scope: str = SCOPE, how: str = "sum") -> str:
    """A gauge over all selected servers. `more`: further matchers, such as 'state="full"'."""
    return f"{how}({metric}{{{scope}{', ' * bool(more)}{more}}})"


def rate(metric: str, by: str = "", scope: str = SCOPE) -> str:
    """A counter's increase per second, summed over all labels but `by`."""
    return f"sum{f' by ({by}) ' * bool(by)}(rate({metric}{{{scope}}}[{RATE}]))"


def divided(above: str, below: str) -> str:
    """A ratio that has no value, instead of NaN, while nothing happens."""
    return f"{above} / ({below} > 0)"


def share(part: str, rest: str) -> str:
    """The rate of one counter as a share of its sum with another."""
    return divided(rate(part), f"({rate(part)} + {rate(rest)})")


def mean(histogram: str, by: str = "", scope: str = SCOPE) -> str:
    return divided(rate(f"{histogram}_sum", by, scope), rate(f"{histogram}_count", by, scope))


def quantile(share: float, histogram: str, scope: str = SCOPE) -> str:
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', 'le', scope)})"


def per_engine(total: str) -> str:
    """Seconds per second, summed over engines, as a share of their time."""
    return f"{total} / scalar({gauge(RUNNING, how='count')})"


def metrics(expr: str) -> list[str]:
    """Names of the metrics that an expression reads; a histogram's series go by its own name."""
    return [re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:vllm:|kvserve_)\w+", expr)]

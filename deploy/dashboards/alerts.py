"""Alert rules: for a Prometheus of one's own, and as the custom resource of the Prometheus operator."""

from typing import Any

from deploy.dashboards.promql import AGREEMENT, COMPACTION, POOL_USE, REJECTIONS, RUNNING, WAITING

PER_SERVER = "job, instance, model_name"
POOL_FULL = 0.95
TIMES_USUAL = 3
FEWEST_REJECTED = 20
BUSY = 0.10
AGREED = 0.90
FEWEST_JUDGED = 20


def groups() -> list[dict[str, Any]]:
    return [{"name": "kvserve", "rules": [_pool_pressure(), _rejections(), _compaction_share(), _quality()]}]


def operator_resource() -> dict[str, Any]:
    """The same rules for `kubectl apply`."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "kvserve", "labels": {"app.kubernetes.io/name": "kvserve"}},
        "spec": {"groups": groups()},
    }


def _pool_pressure() -> dict[str, Any]:
    full = f"max by ({PER_SERVER}) ({POOL_USE}) > {POOL_FULL}"
    waiting = f"sum by ({PER_SERVER}) ({WAITING}) > 0"
    return _rule(
        "KVPoolPressure",
        f"{full} and {waiting}",
        "5m",
        "KV pool of {{ $labels.instance }} is {{ $value | humanizePercentage }} full and requests wait",
        "Lower the budget of the server's --kv-policy, let requests compress under pressure, or add servers.",
        "Compression overview",
    )


def _rejections() -> dict[str, Any]:
    def rejected(function: str, window: str) -> str:
        return f"sum by ({PER_SERVER}, reason) ({function}({REJECTIONS}{window}))"

    rising = f"{rejected('rate', '[10m]')} > {TIMES_USUAL} * {rejected('rate', '[1h] offset 10m')}"
    many = f"{rejected('increase', '[10m]')} > {FEWEST_REJECTED}"
    return _rule(
        "KVPolicyRejectionsRising",
        f"{rising} and {many}",
        "5m",
        "{{ $labels.instance }} refuses {{ $value | humanize }} requests per second as {{ $labels.reason }}",
        f"More than {TIMES_USUAL} times as many as in the hour before: a client has changed, or this server has. "
        "The error body of the refused requests says what is wrong.",
        "Policies",
    )


def _compaction_share() -> dict[str, Any]:
    busy = f"sum by ({PER_SERVER}) (rate({COMPACTION}_sum[5m]))"
    return _rule(
        "KVCompactionShareHigh",
        f"{busy} / count by ({PER_SERVER}) ({RUNNING}) > {BUSY}",
        "10m",
        "{{ $labels.instance }} spends {{ $value | humanizePercentage }} of its time in compactions",
        "Find the policy on the dashboard; a larger slack compacts less often, and some policies are cheaper.",
        "Policies",
    )


def _quality() -> dict[str, Any]:
    def judged(function: str, part: str) -> str:
        return f"sum by ({PER_SERVER}, policy) ({function}({AGREEMENT}_{part}[6h]))"

    low = f"{judged('rate', 'sum')} / {judged('rate', 'count')} < {AGREED}"
    return _rule(
        "KVQualityLow",
        f"{low} and {judged('increase', 'count')} > {FEWEST_JUDGED}",
        "15m",
        "{{ $labels.policy }} on {{ $labels.instance }} agrees with the full cache in "
        "{{ $value | humanizePercentage }} of tokens",
        "What the canary judged in the last 6 hours. Raise the budget of these requests, or choose another policy.",
        "Policies",
    )


def _rule(name: str, expr: str, lasting: str, summary: str, text: str, board: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "for": lasting,
        "labels": {"severity": "warning"},
        "annotations": {"summary": summary, "description": text, "dashboard": f"kvserve / {board}"},
    }

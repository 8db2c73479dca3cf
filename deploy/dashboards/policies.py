"""The dashboard "Policies": what each policy keeps, drops and costs, and what was refused."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards import frame, promql
from deploy.dashboards.panels import COSTLY, EVENTS, REQUESTS, SHARE, TOKENS, UNWANTED, Panel, Query, latencies
from deploy.dashboards.promql import COMPACTION, KEPT, POLICY, REJECTIONS

EVICTED, MERGED = "kvserve_tokens_evicted_total", "kvserve_tokens_merged_total"
COMPACTIONS, FREED = "kvserve_compactions_total", "kvserve_blocks_freed_total"
RELIEVED = "kvserve_pressure_compactions_total"
BUSY = f"{COMPACTION}_sum"


def by_policy(metric: str) -> list[Query]:
    return [Query(promql.rate(metric, "policy", POLICY), "{{policy}}")]


TILES = [
    Panel(
        "Kept fraction",
        "Share of its tokens that a request with a policy still held at its end, mean.",
        [Query(promql.mean(KEPT, scope=POLICY))],
        SHARE,
    ),
    Panel(
        "Evicted tok/s",
        "Tokens dropped per second and layer, mean over layers.",
        [Query(promql.rate(EVICTED, scope=POLICY))],
        TOKENS,
    ),
    Panel(
        "Merged tok/s",
        "Evicted tokens per second and layer that were merged into kept ones.",
        [Query(promql.rate(MERGED, scope=POLICY))],
        TOKENS,
    ),
    Panel(
        "Compactions / s",
        "Times per second that a request's cache was compacted.",
        [Query(promql.rate(COMPACTIONS, scope=POLICY))],
        EVENTS,
    ),
    Panel(
        "Compaction share",
        "Share of an engine's time spent in compactions, mean over engines.",
        [Query(promql.per_engine(promql.rate(BUSY, scope=POLICY)))],
        SHARE,
        COSTLY,
    ),
    Panel(
        "Rejections / s",
        "Requests refused because of their policy.",
        [Query(promql.rate(REJECTIONS))],
        REQUESTS,
        UNWANTED,
    ),
]

KEPT_SHARES = [
    Panel(
        "Kept fraction by policy",
        "Share of its tokens that a request still held at its end, mean. It is the budget, unless requests are "
        "shorter than that.",
        [Query(promql.mean(KEPT, "policy", POLICY), "{{policy}}")],
        SHARE,
        top=1,
    ),
    Panel(
        "Kept fraction, spread",
        "Quantiles over the requests of the selected policies, in steps of 5 %.",
        [Query(promql.quantile(share, KEPT, POLICY), f"p{share * 100:.0f}") for share in (0.1, 0.5, 0.9)],
        SHARE,
        top=1,
    ),
]

DROPPED = [
    Panel(
        "Evicted tokens",
        "Tokens dropped per second and layer, mean over layers.",
        by_policy(EVICTED),
        TOKENS,
        stacked=True,
    ),
    Panel(
        "Merged tokens",
        "Evicted tokens per second and layer that were merged into kept ones; only policies that merge have any.",
        by_policy(MERGED),
        TOKENS,
        stacked=True,
    ),
]

COST = [
    latencies(
        "Compaction time",
        "Time that one compaction took on a worker, over the selected policies; requests in the same batch wait for "
        "it.",
        COMPACTION,
        POLICY,
    ),
    Panel(
        "Compaction share of time",
        "Share of an engine's time spent in compactions, mean over engines. Above 10 % the policy costs more than it "
        "should: a larger `slack` compacts less often.",
        [Query(promql.per_engine(promql.rate(BUSY, "policy", POLICY)), "{{policy}}")],
        SHARE,
        COSTLY,
        stacked=True,
    ),
    Panel(
        "Compactions",
        "Times per second that a request's cache was compacted. *under pressure*: those among them that only a full "
        "pool made due.",
        [*by_policy(COMPACTIONS), Query(promql.rate(RELIEVED, scope=POLICY), "under pressure", "orange")],
        EVENTS,
    ),
    Panel(
        "Blocks freed",
        "Blocks per second that compactions gave back to the pool, booked when a request ends.",
        by_policy(FREED),
        EVENTS,
        stacked=True,
    ),
]

REFUSALS = [
    Panel(
        "Rejections by reason",
        "*unknown_policy*, *bad_parameter*: mistakes of clients. *unsupported*: this model or these server options "
        "cannot do it. *too_long*: could never fit into the pool.",
        [Query(promql.rate(REJECTIONS, "reason"), "{{reason}}")],
        REQUESTS,
        stacked=True,
    ),
    Panel(
        "Rejected share",
        "Requests refused because of their policy, as a share of those and of the finished ones.",
        [Query(promql.share(REJECTIONS, frame.REQUESTS), "rejected", "red")],
        SHARE,
        top=1,
    ),
]


def build() -> Dashboard:
    return frame.framed(
        "kvserve-policies",
        "Policies",
        "What each compression policy keeps, drops and costs, and which requests were refused.",
        TILES,
        {"Kept": KEPT_SHARES, "Dropped": DROPPED, "Cost": COST, "Refused": REFUSALS},
    )

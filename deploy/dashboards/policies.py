"""The dashboard "Policies": what each policy keeps, drops and costs, and what was refused."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards import frame, promql
from deploy.dashboards.panels import COSTLY, EVENTS, REQUESTS, SHARE, TOKENS, UNWANTED, Panel, Query, latencies
from deploy.dashboards.promql import AGREEMENT, COMPACTION, KEPT, POLICY, REJECTIONS

EVICTED, MERGED = "kvserve_tokens_evicted_total", "kvserve_tokens_merged_total"
COMPACTIONS, FREED = "kvserve_compactions_total", "kvserve_blocks_freed_total"
RELIEVED = "kvserve_pressure_compactions_total"
ERRORS = "kvserve_policy_errors_total"
SAME_PREFIX = "kvserve_quality_same_prefix"
REPLAYS, SKIPPED, QUEUED = "kvserve_canary_replays_total", "kvserve_canary_skipped_total", "kvserve_canary_waiting"
BUSY = f"{COMPACTION}_sum"


def by_policy(metric: str) -> list[Query]:
    return [Query(promql.rate(metric, "policy", POLICY), "{{policy}}")]


def changed(by: str) -> str:
    """Answers of which less than 99.9 % agree."""
    return promql.rate(f"{AGREEMENT}_bucket", by, f'{POLICY}, le="0.999"')


def judged(by: str) -> str:
    return promql.rate(f"{AGREEMENT}_count", by, POLICY)


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

QUALITY = [
    Panel(
        "Token agreement by policy",
        "With `--kv-canary`: share of the tokens of a compressed greedy answer that the full cache would have chosen "
        "after the same tokens, mean over requests. It is mild: after a wrong token the full cache may go on with it.",
        [Query(promql.mean(AGREEMENT, "policy", POLICY), "{{policy}}")],
        SHARE,
        top=1,
    ),
    Panel(
        "Unchanged beginning by policy",
        "Share of an answer before the first token that the full cache would not have chosen, mean over requests: so "
        "far the full cache would have answered the same by itself.",
        [Query(promql.mean(SAME_PREFIX, "policy", POLICY), "{{policy}}")],
        SHARE,
        top=1,
    ),
    Panel(
        "Unchanged answers by policy",
        "Share of the answers that are the full cache's, token for token (up to 1,000 tokens; of longer ones, all but "
        "one in a thousand).",
        [Query(f"1 - {promql.divided(changed('policy'), judged('policy'))}", "{{policy}}")],
        SHARE,
        top=1,
    ),
    Panel(
        "Replays",
        "*judged*: what the other panels are about. *interrupted*: gave way to a request. *dropped*: too many waited, "
        "or interrupted too often. *failed*: see the server's log.",
        [Query(promql.rate(REPLAYS, "outcome"), "{{outcome}}")],
        EVENTS,
    ),
    Panel(
        "Requests that cannot be judged",
        "*sampled*: temperature above 0. *constrained*: penalties, biases, structured outputs and the like. "
        "*multimodal*: more than token ids. *too_long*: does not fit into the pool uncompressed. *empty*: no token.",
        [Query(promql.rate(SKIPPED, "reason"), "{{reason}}")],
        EVENTS,
    ),
    Panel(
        "Replays waiting",
        "For a second without requests; 64 at most in each server. Always many: the server is never idle, and the "
        "canary sees little.",
        [Query(promql.gauge(QUEUED), "waiting", "blue")],
        "short",
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
    Panel(
        "Errors by policy",
        "Requests that ended with an error because their policy's own code failed: a fault of the policy, which the "
        "error and the server's log name. Other requests notice nothing.",
        by_policy(ERRORS),
        REQUESTS,
        UNWANTED,
        stacked=True,
    ),
]


def build() -> Dashboard:
    return frame.framed(
        "kvserve-policies",
        "Policies",
        "What each compression policy keeps, drops, costs and changes, and which requests were refused or failed.",
        TILES,
        {"Kept": KEPT_SHARES, "Quality": QUALITY, "Dropped": DROPPED, "Cost": COST, "Refused and failed": REFUSALS},
    )

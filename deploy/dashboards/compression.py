"""The dashboard "Compression overview": does compression pay, and what do clients feel of it?"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.dashboards import frame, promql
from deploy.dashboards.panels import (
    BYTES,
    EVENTS,
    NEAR_FULL,
    REQUESTS,
    SHARE,
    TOKENS,
    UNWANTED,
    Panel,
    Query,
    latencies,
)
from deploy.dashboards.promql import (
    AVOIDED,
    KV_BYTES,
    POLICY,
    POOL_BYTES,
    POOL_USE,
    PREEMPTIONS,
    PREFIX_BYTES,
    RUNNING,
    WAITING,
)

RESIDENT = promql.gauge(KV_BYTES, 'state="resident"')
FULL = promql.gauge(KV_BYTES, 'state="full"')
POOL = promql.gauge(POOL_BYTES)
GENERATED = "vllm:generation_tokens_total"
PROMPT = "vllm:prompt_tokens_total"
READ = "kvserve_prompt_tokens_total"
HITS, TAKEN = "kvserve_prefix_hits_total", "kvserve_prefix_tokens_total"

TILES = [
    Panel(
        "KV memory saved",
        "Share of the KV cache of the requests running now that they do not hold, because it was compressed. "
        "0 % means that nothing is compressed.",
        [Query(f"1 - {promql.divided(RESIDENT, FULL)}")],
        SHARE,
    ),
    Panel(
        "Pool use",
        "Blocks in use as a share of all, in the fullest server. Near 100 % requests wait or are preempted.",
        [Query(promql.gauge(POOL_USE, how="max"))],
        SHARE,
        NEAR_FULL,
    ),
    Panel(
        "Requests / s",
        "Requests finished per second, with and without a policy.",
        [Query(promql.rate(frame.REQUESTS, scope=POLICY))],
        REQUESTS,
    ),
    Panel(
        "Output tok/s",
        "Tokens generated per second, over all policies.",
        [Query(promql.rate(GENERATED))],
        TOKENS,
    ),
    Panel(
        "Preemptions / s",
        "Requests thrown out of a full pool, to be computed again from the start.",
        [Query(promql.rate(PREEMPTIONS))],
        EVENTS,
        UNWANTED,
    ),
    Panel(
        "Preemptions avoided / s",
        'Times that compacting a request with `"when": "pressure"` saved another one from preemption.',
        [Query(promql.rate(AVOIDED))],
        EVENTS,
    ),
]

MEMORY = [
    Panel(
        "KV bytes of running requests",
        "*resident*: what running requests hold. *full*: what the same requests would hold uncompressed; above the "
        "pool, they run at the same time only because of compression. *pool*: all blocks.",
        [Query(RESIDENT, "resident", "green"), Query(FULL, "full", "orange"), Query(POOL, "pool", "text")],
        BYTES,
    ),
    Panel(
        "Pool use",
        "*in use*: blocks that are not free, in the fullest server. *uncompressed*: what running requests would need, "
        "over all servers; above 100 % they would not fit.",
        [
            Query(promql.gauge(POOL_USE, how="max"), "in use", "green"),
            Query(promql.divided(FULL, POOL), "uncompressed", "orange"),
        ],
        SHARE,
        NEAR_FULL,
    ),
]

TRAFFIC = [
    Panel(
        "Requests by policy",
        "Requests finished per second. `full`: without compression.",
        [Query(promql.rate(frame.REQUESTS, "policy", POLICY), "{{policy}}")],
        REQUESTS,
        stacked=True,
    ),
    Panel(
        "Tokens",
        "Tokens per second over all policies: *input* with those from the prefix cache, and *output*.",
        [Query(promql.rate(PROMPT), "input", "blue"), Query(promql.rate(GENERATED), "output", "green")],
        TOKENS,
    ),
    Panel(
        "Input tokens by policy",
        "Prompt tokens per second, with those from the prefix cache. `full`: without compression.",
        [Query(promql.rate(READ, "policy", POLICY), "{{policy}}")],
        TOKENS,
        stacked=True,
    ),
    Panel(
        "Output tokens by policy",
        "Tokens generated per second. `full`: without compression.",
        [Query(promql.rate("kvserve_generation_tokens_total", "policy", POLICY), "{{policy}}")],
        TOKENS,
        stacked=True,
    ),
]

SHARED = [
    Panel(
        "Shared prefixes",
        "*held*: compressed prefixes that are kept for later requests (`share`). Requests that need blocks get those "
        "of the prefix that was not used for longest. *pool*: all blocks.",
        [Query(promql.gauge(PREFIX_BYTES), "held", "purple"), Query(POOL, "pool", "text")],
        BYTES,
    ),
    Panel(
        "Tokens from shared prefixes",
        "Prompt tokens per second that were not read, because a request started from a shared prefix.",
        [Query(promql.rate(TAKEN, "policy", POLICY), "{{policy}}")],
        TOKENS,
        stacked=True,
    ),
    Panel(
        "Starts from shared prefixes",
        "Requests per second that started from a shared prefix.",
        [Query(promql.rate(HITS, "policy", POLICY), "{{policy}}")],
        REQUESTS,
        stacked=True,
    ),
    Panel(
        "Share of input taken",
        "Prompt tokens from shared prefixes, as a share of all prompt tokens of the policy.",
        [
            Query(
                promql.divided(promql.rate(TAKEN, "policy", POLICY), promql.rate(READ, "policy", POLICY)), "{{policy}}"
            )
        ],
        SHARE,
        top=1,
    ),
]

PRESSURE = [
    Panel(
        "Preemptions, and those avoided",
        "A preempted request loses its cache and is computed again. *avoided*: a request that allows it was "
        "compacted instead.",
        [Query(promql.rate(PREEMPTIONS), "preempted", "red"), Query(promql.rate(AVOIDED), "avoided", "green")],
        EVENTS,
    ),
    Panel(
        "Scheduler queue",
        "Requests running, and requests waiting for blocks or for a place in the batch.",
        [Query(promql.gauge(RUNNING), "running", "blue"), Query(promql.gauge(WAITING), "waiting", "orange")],
        "short",
    ),
]

LATENCY = [
    latencies(
        "Time to first token",
        "Queueing, prefill and the first token, over all policies.",
        "vllm:time_to_first_token_seconds",
    ),
    latencies(
        "Inter-token latency",
        "Time between the tokens of a request, over all policies. Compactions show up in p99.",
        "vllm:inter_token_latency_seconds",
    ),
]


def build() -> Dashboard:
    return frame.framed(
        "kvserve-compression",
        "Compression overview",
        "What KV-cache compression saves, and what clients feel of it.",
        TILES,
        {"Memory": MEMORY, "Traffic": TRAFFIC, "Shared prefixes": SHARED, "Pressure": PRESSURE, "Latency": LATENCY},
    )

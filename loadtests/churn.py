"""Clients that vanish: generators are killed while their requests run, and nothing of them may stay behind."""

import time

from loadtests.stage import Stage, say

PART = "churn"
PATIENCE = 60.0
"""Seconds that the killed generators' requests get to run, and to be gone."""


def measure(stage: Stage) -> None:
    for _ in range(stage.sizes.churn_rounds):
        _round(stage)
    stats = stage.server.stats()
    checks = {
        "requests still running or waiting": stats["requests_running"] + stats["requests_waiting"],
        "bytes of KV cache still held": stats["resident_bytes"],
        "share of the pool still in use": stage.server.metric("vllm:kv_cache_usage_perc"),
    }
    for what, left in checks.items():
        stage.notes.check(PART, f"{what} after {stage.sizes.churn_rounds} rounds", left, 0)
    policy = stage.sizes.churn_policies[0]
    stage.notes.add(PART, f"{policy} afterwards", **stage.measured(policy, stage.sizes.mixed))


def _round(stage: Stage) -> None:
    """Start one generator per policy, kill all of them once their requests run."""
    policies, load = stage.sizes.churn_policies, stage.sizes.churn
    say(f"killed while running: {', '.join(policies)}")
    ended = stage.server.ended()
    runs = [stage.generator.start(policy, load) for policy in policies]
    running = _wait_for_requests(stage, len(policies))
    for run in runs:
        run.kill()
    drained = stage.server.wait_until_empty(PATIENCE)
    stage.notes.add(PART, "killed", at_once=running, cancelled=stage.server.ended() - ended, drained_s=drained)


def _wait_for_requests(stage: Stage, policies: int) -> int:
    """Until every policy has a running request, or the patience ends; how many run then."""
    end = time.monotonic() + PATIENCE
    while True:
        running = stage.server.stats()["running"]
        if len({request["policy"] for request in running}) == policies or time.monotonic() > end:
            return len(running)
        time.sleep(0.05)

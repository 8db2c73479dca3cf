"""Clients that vanish: generators are killed while their requests run, and nothing of them may stay behind."""

from loadtests.serving import wait
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
    runs = [stage.generator.start(policy, load) for policy in policies]
    wait(lambda: len({request["policy"] for request in stage.server.stats()["running"]}) == len(policies), PATIENCE)
    running, ended = stage.server.stats()["requests_running"], stage.server.ended()
    for run in runs:
        run.kill()
    drained = stage.server.wait_until_empty(PATIENCE)
    stage.notes.add(PART, "killed", at_once=running, cancelled=stage.server.ended() - ended, drained_s=drained)

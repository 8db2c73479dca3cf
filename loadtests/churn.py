"""Clients that vanish: generators are killed while their requests run, and nothing of them may stay behind."""

from loadtests.stage import Stage, say
from measuring.server import wait

PART = "churn"
PATIENCE = 60.0
"""Seconds that the killed generators' requests get to run, and to be gone."""


def measure(stage: Stage) -> None:
    cancelled = [_round(stage) for _ in range(stage.sizes.churn_rounds)]
    least = len(stage.sizes.churn_policies)
    stage.notes.check(PART, "requests cancelled in the round with the fewest", min(cancelled), least, at_most=False)
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


def _round(stage: Stage) -> int:
    """Start one generator per policy, kill all of them once all their clients wait for an answer; how many did."""
    policies, load = stage.sizes.churn_policies, stage.sizes.churn
    say(f"killed while running: {', '.join(policies)}")
    runs = [stage.generator.start(policy, load) for policy in policies]
    wait(lambda: _in_flight(stage) >= load.clients * len(policies), PATIENCE)
    running, ended = stage.server.stats()["requests_running"], stage.server.ended()
    for run in runs:
        run.kill()
    drained = stage.server.wait_until_empty(PATIENCE)
    cancelled = stage.server.ended() - ended
    stage.notes.add(PART, "killed", at_once=running, cancelled=cancelled, drained_s=drained)
    return cancelled


def _in_flight(stage: Stage) -> int:
    stats = stage.server.stats()
    return int(stats["requests_running"] + stats["requests_waiting"])

"""Several policies at once: one generator for each, and what every one of them lost against having the server alone.

`full` is also measured among as many neighbours that do not compress: what it gains or loses in the mix against that is
what the compression of its neighbours does to it.
"""

from loadtests.generator import LoadResult
from loadtests.stage import Stage, quantities, say
from loadtests.watch import Watch
from measuring.server import wait

PART = "mixed"
PATIENCE = 5.0


def measure(stage: Stage) -> None:
    policies, load = stage.sizes.mixed_policies, stage.sizes.mixed
    alone = {policy: stage.measured(policy, load) for policy in policies}
    for policy, found in alone.items():
        stage.notes.add(PART, f"{policy} alone", **found)
    _together(stage, [policies[0]] * len(policies), f"among {policies[0]}", alone)
    expected = {policy: _ended(stage, policy) + load.requests for policy in policies}
    _together(stage, list(policies), "in the mix", alone)
    # Counters reach the HTTP side a moment after the answers.
    wait(lambda: all(_ended(stage, policy) == count for policy, count in expected.items()), PATIENCE)
    for policy, count in expected.items():
        off = abs(_ended(stage, policy) - count)
        stage.notes.check(PART, f"{policy}, requests sent but not counted on /metrics, or the other way", off, 0)


def _ended(stage: Stage, policy: str) -> int:
    return stage.server.ended(policy=policy.partition(":")[0])


def _together(stage: Stage, policies: list[str], where: str, alone: dict[str, dict[str, float]]) -> None:
    """One generator for each of `policies`, all at the same time."""
    say(f"at once: {', '.join(policies)}")
    preempted = stage.preemptions()
    with Watch(stage.server) as watch:
        runs = [stage.generator.start(policy, stage.sizes.mixed, stage.target) for policy in policies]
        found = [run.result() for run in runs]
    stage.server.wait_until_empty()
    shared = {"at_once": watch.at_once, "preempted": stage.preemptions() - preempted, "others": watch.others}
    for policy, result in _first(policies, found).items():
        slower = result.tpot_p50_ms / alone[policy]["tpot_p50_ms"]
        all_clients = stage.sizes.mixed.clients * len(policies)
        stage.notes.add(
            PART, f"{policy} {where}", clients=all_clients, **shared, **quantities(result), tpot_of_alone=slower
        )


def _first(policies: list[str], found: list[LoadResult]) -> dict[str, LoadResult]:
    """Policy -> its result; of several generators with the same policy the first one's."""
    return dict(reversed(list(zip(policies, found, strict=True))))

"""Ample and tight pools: throughput and goodput of every policy as the pool shrinks.

A fixed number of clients, each with one request at a time. `full` runs first and last in every repetition: ratios are
to the mean of the two, so that what drifts on the machine hits both sides. The order of the others turns around from
one repetition to the next.
"""

from loadtests.stage import Quantities, Stage

PART = "crossover"
FULL = "full"


def measure(stage: Stage) -> None:
    for repetition in range(stage.sizes.repeats):
        policies = compressing(stage)[:: 1 if repetition % 2 == 0 else -1]
        runs = [(policy, _cell(stage, policy)) for policy in (FULL, *policies, FULL)]
        reference = (runs[0][1]["tokens_per_s"] + runs[-1][1]["tokens_per_s"]) / 2
        for policy, found in runs:
            ratio = found["tokens_per_s"] / reference
            stage.notes.add(PART, case(policy, stage.share), **found, of_full=ratio)


def compressing(stage: Stage) -> list[str]:
    return [f"{policy}:{budget}" for budget in stage.sizes.budgets for policy in stage.sizes.policies]


def case(policy: str, share: float) -> str:
    return f"{policy} @ {100 * share:g} %"


def _cell(stage: Stage, policy: str) -> Quantities:
    """One run, and the pool as the server reports it."""
    found = stage.measured(policy, stage.sizes.crossover)
    return {"pool_mib": stage.server.stats()["pool_bytes"] / 2**20, **found}

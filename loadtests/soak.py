"""Steady traffic of several policies from guidellm, and whether anything of it stays behind."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from loadtests.guidellm_process import Guide, scenario
from loadtests.stage import Stage, say
from loadtests.watch import Sample, Watch

PART = "soak"
SAMPLES = 200
LEAST = 10
"""Samples under load that are needed to speak of growth."""

TOLERANCE = 0.02
"""Growth of the resident memory from the middle to the end that passes for flat, as a share of it."""


def measure(stage: Stage, folder: Path) -> None:
    policies = stage.sizes.soak_policies
    say(f"guidellm for {stage.sizes.soak_seconds} s, at once: {', '.join(policies)}")
    with Watch(stage.server, max(0.2, stage.sizes.soak_seconds / SAMPLES)) as watch:
        guides = [_start(stage, policy, folder / f"{PART}-{n}", n) for n, policy in enumerate(policies)]
        try:
            found = [guide.result() for guide in guides]
        finally:
            for guide in guides:
                guide.stop()
    drained = stage.server.wait_until_empty()
    clients = stage.sizes.soak.clients * len(policies)
    shared = {"clients": clients, "at_once": watch.at_once, "others": watch.others}
    for policy, quantities in zip(policies, found, strict=True):
        case = f"{policy}, {stage.sizes.soak_seconds} s"
        stage.notes.add(PART, case, **shared, **quantities, drained_s=drained)
    stage.notes.course[PART] = watch.samples
    _check(stage, busy(watch.samples))


def _start(stage: Stage, policy: str, folder: Path, seed: int) -> Guide:
    made = scenario(
        stage.server.url, policy, stage.sizes.soak, stage.sizes.soak_seconds, stage.target, seed, folder / "out.json"
    )
    return Guide(folder, policy.partition(":")[0], made)


def _check(stage: Stage, samples: Sequence[Sample]) -> None:
    stats, usage = stage.server.stats(), stage.server.metric("vllm:kv_cache_usage_perc")
    stage.notes.check(PART, "bytes of KV cache still held afterwards", stats["resident_bytes"], 0)
    stage.notes.check(PART, "share of the pool still in use afterwards", usage, 0)
    stage.notes.check(PART, "looks at the server that found it at work", len(samples), LEAST, at_most=False)
    for process in ("api", "engine") if samples else ():
        growth = grown([getattr(sample.memory, process) for sample in samples])
        what = f"resident memory of the {process} process(es), growth from the middle to the end"
        stage.notes.check(PART, what, growth, TOLERANCE)


def busy(samples: Sequence[Sample]) -> list[Sample]:
    """From the first to the last one with a running request."""
    at = [n for n, sample in enumerate(samples) if sample.running]
    return list(samples[at[0] : at[-1] + 1]) if at else []


def grown(values: Sequence[float]) -> float:
    """Median of the last tenth over that of the tenth in the middle, minus 1. Raises ValueError for none."""
    if not values:
        raise ValueError("the server was never seen at work: nothing to compare")
    tenth = max(1, len(values) // 10)
    middle = (len(values) - tenth) // 2
    return statistics.median(values[-tenth:]) / statistics.median(values[middle : middle + tenth]) - 1

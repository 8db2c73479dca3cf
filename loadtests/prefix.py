"""Prompts that share long beginnings: what compression leaves of the prefix cache."""

from loadtests.stage import Stage

PART = "prefix"


def measure(stage: Stage) -> None:
    for policy in stage.sizes.prefix_policies:
        asked, hit = _cache(stage)
        found = stage.measured(policy, stage.sizes.prefix)
        asked_after, hit_after = _cache(stage)
        stage.notes.add(PART, policy, **found, hit_rate=(hit_after - hit) / (asked_after - asked))


def _cache(stage: Stage) -> tuple[float, float]:
    """Tokens looked up in vLLM's prefix cache so far, and found."""
    return stage.server.metric("vllm:prefix_cache_queries_total"), stage.server.metric("vllm:prefix_cache_hits_total")

"""What a server says once its engine is up: how its layers are grouped, and how much its cache holds."""

import logging

from kvserve.policy import Facts

logger = logging.getLogger("vllm.kvserve")  # the logger of vLLM's own start-up lines, so that it has their level


def announce(facts: Facts | None) -> None:
    if facts is not None:
        logger.info("kvserve: %s", line(facts))


def line(facts: Facts) -> str:
    """One line; it names the flag that would change it."""
    if not facts.num_layers:
        return "no layer of this model can be compressed; requests are served with the full cache only"
    groups = "1 group" if facts.groups == 1 else f"{facts.groups} groups"
    return (
        f"{facts.num_layers} layers that can be compressed, in {groups} ({facts.bundling}; --kv-groups N changes it); "
        f"the cache holds {facts.pool_tokens:,} tokens of one request"
    )

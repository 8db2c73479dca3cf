"""What differs between vLLM 0.32 and 0.33, as far as kvserve meets it; the rest is written once, for both.

A server without vLLM 0.32 needs nothing of this: then 0.33's half goes to where it is used, and the file away.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from kvserve.startup.version import vllm_version

VERSION = "0.33."
INSTALLED = (vllm_version() or "").startswith(VERSION)

CHANGED = {
    "vllm.v1.core.sched.scheduler.Scheduler": {"_get_local_prefix_cache_hit": "self request max_cache_hit_length"},
}
"""Class -> method -> parameters, where they are others than those of `kvserve.startup.overridden`."""

MOVED = {
    "make_arg_parser": ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args"),
    "cli_env_setup": ("vllm.entrypoints.serve.utils.api_utils", "vllm.entrypoints.common.startup"),
}
"""Function -> its module in 0.32, and in 0.33."""

Hit = tuple[Any, int, int, bool]  # as vLLM's `Scheduler._get_local_prefix_cache_hit` returns it: blocks, tokens, ...


def overlaid(signatures: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """0.32's signatures with 0.33's in their place."""
    return {owner: {**methods, **CHANGED.get(owner, {})} for owner, methods in signatures.items()}


def moved(name: str) -> Any:
    """A function of vLLM, from where it is in the installed version."""
    return getattr(importlib.import_module(MOVED[name][INSTALLED]), name)


def hit_within(
    limit: int, request: Any, look_up: Callable[..., Hit], given: tuple[int | None, ...], manager: Any
) -> Hit:
    """The longest prefix hit of at most `limit` tokens.

    look_up: vLLM's own, of `request`. given: what vLLM calls it with besides: nothing in 0.32, a limit of its own or
    None in 0.33. A longer hit cannot be cut: it holds the blocks of a sliding window, and the state of a recurrent
    layer, at its own end only.
    """
    if given:
        return look_up(min(limit, request.num_tokens - 1, *(each for each in given if each is not None)))
    found = look_up()
    if found[1] <= limit:
        return found
    if limit <= 0:
        return manager.empty_kv_cache_blocks, 0, 0, False
    blocks, hit, uncached = manager.coordinator.find_longest_cache_hit(request.block_hashes, limit)
    return manager.create_kv_cache_blocks(blocks), hit, hit + uncached if uncached else 0, False

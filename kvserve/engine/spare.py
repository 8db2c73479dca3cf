"""A step that needs no new block asks no layer group for one: what keeps several groups as cheap as one.

vLLM asks every group in turn, several questions for each request and step, and the answer to most of them is "nothing":
a generating request fills a block in as many steps as the block has tokens.
"""

from typing import Any

from vllm.v1.request import Request, RequestStatus

from kvserve.engine.blocks import CompressibleManager


def pass_by(manager: Any) -> None:
    """Let vLLM's KV-cache manager look only at requests that may get, or may publish, a block in this step.

    Where a group is not ours, each step may give up blocks (a sliding window), so there nothing changes.
    """
    groups, pool = manager.coordinator.single_type_managers, manager.block_pool
    if not all(isinstance(g, CompressibleManager) and g.block_size == pool.hash_block_size for g in groups):
        return
    stock, nothing = manager.allocate_slots, manager.empty_kv_cache_blocks

    def allocate_slots(request: Request, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        running = request.status is RequestStatus.RUNNING and kwargs == {"num_lookahead_tokens": 0} and not args
        if running and all(_roomy(group, request, num_new_tokens) for group in groups):
            return nothing
        return stock(request, num_new_tokens, *args, **kwargs)

    manager.allocate_slots = allocate_slots


def _roomy(group: CompressibleManager, request: Request, new: int) -> bool:
    """Whether the request's last block has room for more than `new` tokens here, and no full one is unpublished."""
    req_id, size = request.request_id, group.block_size
    physical = request.num_computed_tokens - group.offset.get(req_id, 0)
    used = physical % size
    if not 0 < used < size - new:
        return False
    return (
        not group.enable_caching or req_id in group.offset or group.num_cached_block.get(req_id, 0) >= physical // size
    )

"""Block accounting of one layer group: which blocks a request holds, and how many tokens it lost."""

from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request


class Moved(NamedTuple):
    """Blocks before and after a compaction, and how many went back to the pool."""

    src: list[int]
    dst: list[int]
    freed: int


class CompressibleManager(FullAttentionManager):
    """vLLM's block manager with a second length: physical = logical - offset.

    vLLM asks for "blocks for N tokens", N logical; every such question is answered for N - offset.
    Offsets appear with a request's first compaction and die with its blocks (finish, abort, preemption).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.offset: dict[str, int] = {}
        self.peak: dict[str, int] = {}  # admission cap of requests that compact between prefill chunks

    @property
    def has_positionally_stable_blocks(self) -> bool:
        return False

    # -- a request comes in and grows ----------------------------------------------------------------

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        *args: Any,
        apply_admission_cap: bool = False,
        **kwargs: Any,
    ) -> int:
        offset = self.offset.get(request_id, 0)
        num_tokens -= offset
        if apply_admission_cap:
            num_tokens = min(num_tokens, self.peak.get(request_id, num_tokens))
        return super().get_num_blocks_to_allocate(
            request_id,
            num_tokens,
            new_computed_blocks,
            total_computed_tokens - offset,
            num_local_computed_tokens - offset,
            *args,
            apply_admission_cap=apply_admission_cap,
            **kwargs,
        )

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        """Blocks of a cached prefix; of a compressed one if the request has an offset already."""
        held = num_local_computed_tokens - self.offset.get(request_id, 0)
        super().add_local_computed_blocks(request_id, new_computed_blocks, held, num_external_computed_tokens)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        offset = self.offset.get(request_id, 0)
        return super().allocate_new_blocks(request_id, num_tokens - offset, num_tokens_main_model - offset)

    # -- it shrinks ----------------------------------------------------------------------------------

    def physical(self, request_id: str, logical: int) -> int:
        return logical - self.offset.get(request_id, 0)

    def compact(self, request_id: str, logical: int, keep: int) -> Moved | None:
        """Give up all blocks but those for `keep` tokens; None if no destination can be had now.

        Destinations are blocks that no one else can read: private and unhashed ones of the request,
        then fresh ones, then its own hashed ones, which leave the prefix cache.
        """
        blocks = self.req_to_blocks[request_id]
        free_before = self.block_pool.get_num_free_blocks()
        dst = self._destinations(blocks, cdiv(keep, self.block_size))
        if dst is None:
            return None
        kept = {block.block_id for block in dst}
        gone = [block for block in blocks if block.block_id not in kept]
        src = [block.block_id for block in blocks]
        self.block_pool.free_blocks(reversed(gone))
        self.req_to_blocks[request_id] = dst
        self.offset[request_id] = logical - keep
        # Blocks that others share are not freed, and copies of them cost fresh ones.
        freed = max(0, self.block_pool.get_num_free_blocks() - free_before)
        return Moved(src, [block.block_id for block in dst], freed)

    def _destinations(self, blocks: list[KVCacheBlock], need: int) -> list[KVCacheBlock] | None:
        own = [b for b in blocks if b.ref_cnt == 1 and not b.is_null]
        private = [b for b in own if b.block_hash is None][:need]
        missing = need - len(private)
        if missing == 0:
            return private
        if missing <= self.block_pool.get_num_free_blocks():
            return private + self.block_pool.get_new_blocks(missing)
        hashed = [b for b in own if b.block_hash is not None][:missing]
        if len(hashed) < missing:
            return None
        self.block_pool.evict_blocks({b.block_id for b in hashed})
        return private + hashed

    def copied(self, source: KVCacheBlock, copy: KVCacheBlock) -> KVCacheBlock:
        """`copy`, which vLLM fills before the coming step; it lets go of both when the step is on its way."""
        source.ref_cnt += 1
        self._pending_cow_copies.append((source, copy))
        return copy

    # -- it ends -------------------------------------------------------------------------------------

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        self.offset.pop(request_id, None)
        return super().pop_blocks_for_free(request_id)

    def check_integrity(self, held: Container[KVCacheBlock] = ()) -> None:
        """Raise AssertionError if offsets, blocks and reference counts do not fit together.

        held: blocks that shared compressed prefixes are found by.
        """
        for request_id in self.offset:
            assert request_id in self.req_to_blocks, f"offset without blocks: {request_id}"
        for request_id, blocks in self.req_to_blocks.items():
            ids = [b.block_id for b in blocks]
            assert len(set(ids)) == len(ids), f"{request_id} holds a block twice: {ids}"
            assert all(b.ref_cnt >= 1 for b in blocks), f"{request_id} holds a free block: {ids}"
            if request_id in self.offset:
                shared = [b.block_id for b in blocks if b.block_hash is not None and b not in held]
                assert not shared, f"{request_id} is compacted but others can read {shared}"


def publish_if(coordinator: Any, exact: Callable[[str], bool]) -> None:
    """Let vLLM's block coordinator put only blocks of requests into the prefix cache that `exact` says yes to.

    What a token's keys are in one layer depends on what the layers below it still saw. So once a request is compacted
    in one group, no group of it may be found under the hash of its tokens, groups that are never compacted included.
    """
    stock = coordinator.cache_blocks

    def cache_blocks(request: Request, num_computed_tokens: int) -> None:
        if exact(request.request_id):
            stock(request, num_computed_tokens)

    coordinator.cache_blocks = cache_blocks

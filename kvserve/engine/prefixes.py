"""Compressed prefixes that later requests start from: which ones there are, and the blocks that hold them.

A prefix is made when a request that says `share` is compacted at its `at`. Its blocks stay in vLLM's pool under hashes
of their own, which no request's tokens have. So the pool treats them like any cached prefix: free while nobody uses
them, given away when others need blocks, those that were not used for longest first. With the first block that is given
away the whole prefix is gone. A last block that is not full is copied for whoever goes on writing.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock, KVCacheBlockCopy, make_block_hash_with_group_id
from vllm.v1.request import Request

from kvserve.engine.blocks import CompressibleManager
from kvserve.engine.rounds import Round
from kvserve.engine.tracked import Tracked
from kvserve.policy import Policy


class Key(NamedTuple):
    """What a prefix and a request that starts from it have in common, beside the last tokens of the prefix."""

    chain: bytes  # vLLM's hash of all tokens that fill whole blocks; pictures, adapters and salts are in it too
    salt: str | None
    adapter: str | None
    policy: str


@dataclass(eq=False)
class Prefix:
    """The first `logical` tokens of a prompt, compressed."""

    id: str
    key: Key
    tail: tuple[int, ...]  # tokens behind the last whole block of the hash
    logical: int
    maker: str  # id of the request
    policy: Policy
    weights: Sequence[float] | None  # each layer's share of the budget, as the maker's worker divided it
    rounds: list[Round]  # how it came to be
    blocks: dict[int, list[KVCacheBlock]]  # by layer group
    offsets: dict[int, int]  # by layer group, those that lost tokens
    names: list[Any] = field(default_factory=list)  # hashes that the pool knows the blocks by, of each group
    hits: int = 0
    made: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)


class Prefixes:
    """Those of one engine."""

    def __init__(self, pool: Any, managers: Mapping[int, CompressibleManager]) -> None:
        self._pool, self._managers = pool, managers
        self._held: dict[str, Prefix] = {}
        self._by_key: dict[Key, dict[tuple[int, ...], Prefix]] = {}
        self._by_hash: dict[Any, str] = {}
        self._dropped: list[str] = []
        self._watch()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, block: KVCacheBlock) -> bool:
        """Whether a block is found under our hash and no other."""
        return block.block_hash in self._by_hash

    def __iter__(self) -> Iterator[Prefix]:
        """Last used first."""
        return iter(sorted(self._held.values(), key=lambda each: -each.used))

    # -- made, and found -----------------------------------------------------------------------------

    def publish(self, request: Request, known: Tracked) -> Prefix | None:
        """Hold what a request has been compacted to; None if that is held already, or no block is left for copies."""
        logical, req_id = request.num_computed_tokens, request.request_id
        key, tail = self._name(request, known, logical)
        if tail in self._by_key.get(key, ()):
            return None
        held = {g: manager.physical(req_id, logical) for g, manager in self._managers.items()}
        partial = [g for g, count in held.items() if count % self._managers[g].block_size]
        if len(partial) > self._pool.get_num_free_blocks():
            return None
        blocks = {g: self._managers[g].req_to_blocks[req_id][: self._count(g, n)] for g, n in held.items()}
        for group, copied in zip(partial, self._pool.get_new_blocks(len(partial)), strict=True):
            blocks[group] = [*blocks[group][:-1], self._managers[group].copied(blocks[group][-1], copied)]
        made = Prefix(
            id=os.urandom(8).hex(),
            key=key,
            tail=tail,
            logical=logical,
            maker=req_id,
            policy=known.policy,
            weights=known.weights,
            rounds=[Round(each.logical, dict(each.keep), booked=True) for each in known.rounds.made],
            blocks=blocks,
            offsets={g: logical - n for g, n in held.items() if n < logical},
        )
        self._hold(made)
        return made

    def _count(self, group: int, tokens: int) -> int:
        return cdiv(tokens, self._managers[group].block_size)

    def _hold(self, made: Prefix) -> None:
        self._held[made.id] = made
        self._by_key.setdefault(made.key, {})[made.tail] = made
        for group, blocks in made.blocks.items():
            name = make_block_hash_with_group_id(BlockHash(os.urandom(32)), group)
            self._by_hash[name] = made.id
            made.names.append(name)
            for block in blocks:
                self._pool._insert_block_hash(name, block, num_tokens=None)

    def longest(self, request: Request, known: Tracked) -> Prefix | None:
        """The longest prefix that a request can start from: it ends at the request's `at` or before."""
        if not self._held or request.skip_reading_prefix_cache:
            return None
        most = min(known.prompt_of(request.num_prompt_tokens), request.num_tokens - 1)
        size = self._pool.hash_block_size
        for whole in range(min(most // size, len(request.block_hashes)), -1, -1):
            found = self._by_key.get(self._key(request, known, whole), {})
            for made in sorted(found.values(), key=lambda each: -each.logical):
                text = tuple(request.all_token_ids[whole * size : made.logical])
                if made.logical <= most and text == made.tail and known.rounds.begin_like(made.rounds):
                    return made
        return None

    def _name(self, request: Request, known: Tracked, logical: int) -> tuple[Key, tuple[int, ...]]:
        size = self._pool.hash_block_size
        whole = logical // size
        return self._key(request, known, whole), tuple(request.all_token_ids[whole * size : logical])

    def _key(self, request: Request, known: Tracked, whole: int) -> Key:
        adapter = request.lora_request.lora_name if request.lora_request else None
        chain = bytes(request.block_hashes[whole - 1]) if whole else b""
        return Key(chain, request.cache_salt, adapter, known.identity)

    # -- gone ----------------------------------------------------------------------------------------

    def drop(self, prefix_id: str) -> bool:
        """Forget a prefix; requests that have started from it keep its blocks. Whether there was one."""
        gone = self._held.pop(prefix_id, None)
        if gone is None:
            return False
        same = self._by_key[gone.key]
        del same[gone.tail]
        if not same:
            del self._by_key[gone.key]
        for name in gone.names:
            del self._by_hash[name]
        self._pool.evict_blocks({block.block_id for blocks in gone.blocks.values() for block in blocks})
        self._dropped.append(prefix_id)
        return True

    def drop_made_by(self, req_ids: Iterable[str]) -> None:
        """Those of requests whose policy failed."""
        failed = set(req_ids)
        for prefix_id in [each.id for each in self._held.values() if each.maker in failed]:
            self.drop(prefix_id)

    def take_dropped(self) -> list[str]:
        """What workers have not been told yet."""
        gone, self._dropped = self._dropped, []
        return gone

    def _watch(self) -> None:
        """A block that loses its hash, whatever for, takes its prefix with it."""
        forget: Callable[[KVCacheBlock], list[Any]] = self._pool._remove_cached_block_hashes
        reset: Callable[[], bool] = self._pool.reset_prefix_cache

        def _remove_cached_block_hashes(block: KVCacheBlock) -> list[Any]:
            removed = forget(block)
            for name in removed:
                if (owner := self._by_hash.get(name)) is not None:
                    self.drop(owner)
            return removed

        def reset_prefix_cache() -> bool:
            done = reset()
            for prefix_id in list(self._held) if done else ():
                self.drop(prefix_id)
            return done

        self._pool._remove_cached_block_hashes = _remove_cached_block_hashes
        self._pool.reset_prefix_cache = reset_prefix_cache

    # -- for tests -----------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise AssertionError if prefixes, their names and the pool do not fit together."""
        assert set(self._by_hash.values()) == set(self._held), "hashes of prefixes that are gone, or the reverse"
        assert sum(map(len, self._by_key.values())) == len(self._held), "prefixes that cannot be found"
        for made in self._held.values():
            for group, blocks in made.blocks.items():
                held = made.logical - made.offsets.get(group, 0)
                assert len(blocks) == self._count(group, held), f"prefix {made.id} of {held} tokens: {blocks}"
                lost = [b.block_id for b in blocks if b.block_hash is None]
                assert not lost, f"blocks {lost} of prefix {made.id} are not under its hash any more"


def unchained(copies: Sequence[KVCacheBlockCopy]) -> list[KVCacheBlockCopy]:
    """The copies of one step, which are done all at once: one of a copy is made from what that is made from."""
    made_from = {each.dst_block_id: each.src_block_id for each in copies}
    return [each._replace(src_block_id=made_from.get(each.src_block_id, each.src_block_id)) for each in copies]

"""Shared compressed prefixes in vLLM's pool: who finds which, and when they are gone."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import torch
from vllm.utils.hashing import sha256
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy, get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request

from kvserve.engine.blocks import CompressibleManager
from kvserve.engine.prefixes import Prefixes, unchained
from kvserve.engine.rounds import Round
from kvserve.engine.tracked import Tracked
from kvserve.policy import request as wire
from kvserve.policy.requirements import Asks
from tests.engine import harness

SIZE, BLOCKS, AT, KEEP = 16, 20, 100, 40
PROMPT = harness.tokens(130, seed=3)


@pytest.fixture
def pool():
    init_none_hash(sha256)
    return BlockPool(BLOCKS + 1, enable_caching=True, hash_block_size=SIZE)


@pytest.fixture
def manager(pool):
    spec = FullAttentionSpec(block_size=SIZE, num_kv_heads=1, head_size=8, dtype=torch.float32)
    return CompressibleManager(spec, pool, enable_caching=True, kv_cache_group_id=0, scheduler_block_size=SIZE)


@pytest.fixture
def prefixes(pool, manager):
    return Prefixes(pool, {0: manager})


def asking(name, prompt=PROMPT, salt=None, adapter=None):
    params = harness.params(None, 5)
    made = Request(name, prompt, params, None, cache_salt=salt, block_hasher=get_request_block_hasher(SIZE, sha256))
    made.lora_request = adapter and SimpleNamespace(lora_name=adapter)
    return made


def tracked(identity="keydiff", at=AT):
    policy = wire.parse({"name": "keydiff", "budget": KEEP, "at": at, "share": True})
    return Tracked(policy, Asks.of(policy), identity=identity)


def publish(prefixes, manager, request, at=AT):
    """A request reads its prompt, is compacted at `at`, leaves a prefix and ends."""
    known = tracked(at=at)
    manager.allocate_new_blocks(request.request_id, at, at)
    request.num_computed_tokens = at
    assert manager.compact(request.request_id, at, KEEP) is not None
    known.rounds.made.append(Round(at, {0: KEEP}))
    made = prefixes.publish(request, known)
    manager.free(request.request_id)
    for pair in manager.take_pending_cow_copies():
        manager.block_pool.free_blocks(pair)
    return made


def test_it_is_free_until_somebody_needs_it(prefixes, manager, pool):
    made = publish(prefixes, manager, asking("a"))
    assert pool.get_num_free_blocks() == BLOCKS
    assert (made.logical, made.offsets, len(made.blocks[0])) == (AT, {0: AT - KEEP}, 3)
    prefixes.check_integrity()
    pool.free_blocks(pool.get_new_blocks(BLOCKS - 3))  # there are others to give away first
    assert len(prefixes) == 1
    taken = pool.get_new_blocks(BLOCKS - 2)
    assert len(prefixes) == 0 and prefixes.take_dropped() == [made.id]
    prefixes.check_integrity()
    pool.free_blocks(taken)
    assert all(block.block_hash is None for block in made.blocks[0]), "whole or not at all"


def test_who_finds_it(prefixes, manager):
    made = publish(prefixes, manager, asking("a"))
    assert prefixes.longest(asking("b", PROMPT[:AT] + [7] * 9), tracked()) is made
    assert prefixes.longest(asking("b", [*PROMPT[:AT], 7]), tracked(at=AT + 1)) is made
    others = {
        "salt": (asking("b", salt="secret"), tracked()),
        "adapter": (asking("b", adapter="poet"), tracked()),
        "policy": (asking("b"), tracked(identity="knorm")),
        "its end": (asking("b"), tracked(at=AT - 1)),
        "no token left": (asking("b", PROMPT[:AT]), tracked()),
        "a token behind the last whole block": (asking("b", PROMPT[: AT - 1] + [7] * 9), tracked()),
        "the first token": (asking("b", [7, *PROMPT[1:]]), tracked()),
    }
    for what, (request, known) in others.items():
        assert prefixes.longest(request, known) is None, what


def test_tenants_and_adapters_have_their_own(prefixes, manager):
    salted = publish(prefixes, manager, asking("a", salt="secret"))
    adapted = publish(prefixes, manager, asking("b", adapter="poet"))
    assert prefixes.longest(asking("c", salt="secret"), tracked()) is salted
    assert prefixes.longest(asking("c", adapter="poet"), tracked()) is adapted
    assert prefixes.longest(asking("c"), tracked()) is None


def test_the_longest_wins_and_the_same_is_held_once(prefixes, manager):
    short = publish(prefixes, manager, asking("a"), at=70)
    long = publish(prefixes, manager, asking("b"))
    assert publish(prefixes, manager, asking("c")) is None
    assert prefixes.longest(asking("d"), tracked()) is long
    assert prefixes.longest(asking("d"), tracked(at=99)) is short
    known = tracked()
    known.rounds.made.append(Round(AT, {0: KEEP}))  # it was preempted, and has said something already
    assert prefixes.longest(asking("d"), known) is long
    known.rounds.made[0] = Round(60, {0: KEEP})
    assert prefixes.longest(asking("d"), known) is None


def test_a_cleared_cache_clears_them(prefixes, manager, pool):
    made = publish(prefixes, manager, asking("a"))
    assert pool.reset_prefix_cache()
    assert len(prefixes) == 0 and prefixes.take_dropped() == [made.id]


def test_one_of_a_copy_is_made_from_the_first():
    copies = [KVCacheBlockCopy(1, 2), KVCacheBlockCopy(2, 3), KVCacheBlockCopy(5, 6)]
    assert unchained(copies) == [KVCacheBlockCopy(1, 2), KVCacheBlockCopy(1, 3), KVCacheBlockCopy(5, 6)]

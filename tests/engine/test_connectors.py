"""Offloading beside compression: who has no policy is stored and loaded, who has one is not, and no block is copied
after a compressed request has written over it.
"""

from functools import cache

import pytest

from kvserve.engine.blocks import CompressibleManager
from tests.engine import harness, offloading
from tests.engine.test_pool import count_preemptions, drain

PROMPTS = [harness.tokens(260 + 70 * n, seed=50 + n) for n in range(4)]
POLICIES = [
    {"name": "streaming", "budget": 64, "slack": 32},
    {"name": "h2o", "budget": 100, "slack": 32},
    {"name": "snapkv", "budget": 0.4},
]
LENGTH = 60
BLOCKS = 56  # of each group; four prompts and their answers take up to 58


def started(start, groups, **engine):
    return start(
        options={"groups": groups}, blocks=BLOCKS * groups + 1, max_model_len=1024, max_num_batched_tokens=256, **engine
    )


@cache
def plain(groups):
    """What is said without a connector: to each prompt without and with each policy."""
    llm = started(harness.start, groups)
    said = {
        str(policy): [harness.said(harness.generate(llm, [p], [policy], LENGTH)[0])[0] for p in PROMPTS]
        for policy in (None, *POLICIES)
    }
    harness.stop(llm)
    return said


@pytest.fixture(scope="module", params=[(1, "plain"), (4, "plain"), (1, "multi")], ids=lambda p: f"{p[0]}-{p[1]}")
def llm(request):
    groups, kind = request.param
    plain(groups)
    inner = offloading.config()
    multi = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [inner]},
    }
    engine = started(offloading.start, groups, transfer=multi if kind == "multi" else inner)
    yield engine
    harness.stop(engine)


@pytest.fixture(autouse=True)
def _empty(llm):
    offloading.finish_copies(llm)
    assert harness.scheduler(llm).reset_prefix_cache(reset_connector=True)
    yield
    drain(llm)
    offloading.finish_copies(llm)
    assert harness.free_blocks(llm) == BLOCKS * groups_of(llm)
    scheduler = harness.scheduler(llm)
    scheduler.check_integrity()
    assert not scheduler.kv_hidden.ids
    assert not harness.runner(llm).kv.requests


def groups_of(llm):
    managers = harness.scheduler(llm).kv_cache_manager.coordinator.single_type_managers
    return sum(isinstance(manager, CompressibleManager) for manager in managers)


def answers(llm, prompts, policies, **more):
    return [harness.said(output)[0] for output in harness.generate(llm, prompts, policies, LENGTH, **more)]


def expected(llm, policy, n):
    return plain(groups_of(llm))[str(policy)][n]


def test_who_has_no_policy_is_stored_and_loaded(llm):
    copier = offloading.copier(llm)
    stored, loaded = copier.stored, copier.loaded
    for wanted in (0, 1):
        assert answers(llm, PROMPTS, [None] * 4) == [expected(llm, None, n) for n in range(4)]
        offloading.finish_copies(llm)
        assert (copier.loaded > loaded) == wanted
    blocks = sum(len(prompt) // harness.BLOCK for prompt in PROMPTS) * groups_of(llm)
    assert copier.stored - stored == copier.loaded - loaded == blocks


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p["name"])
def test_who_has_one_is_neither_stored_nor_loaded(llm, policy):
    copier = offloading.copier(llm)
    answers(llm, PROMPTS[:1], [None])
    offloading.finish_copies(llm)
    stored, loaded = copier.stored, copier.loaded
    for n in range(4):
        assert answers(llm, [PROMPTS[n]], [policy]) == [expected(llm, policy, n)]
    offloading.finish_copies(llm)
    assert (copier.stored, copier.loaded) == (stored, loaded)
    assert answers(llm, PROMPTS[1:2], [None]) == [expected(llm, None, 1)]
    assert copier.loaded == loaded, "something of a compressed request was stored"


def test_it_still_reads_the_prefix_cache(llm):
    answers(llm, PROMPTS[3:], [None])
    output = harness.generate(llm, PROMPTS[3:], [POLICIES[0]], LENGTH, warm=True)[0]
    assert output.num_cached_tokens > 0
    assert harness.said(output)[0] == expected(llm, POLICIES[0], 3)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p["name"])
def test_blocks_are_copied_before_a_compressed_request_writes_them(llm, policy):
    """Stores of requests that have just ended wait, and the pool has no other blocks for those that come."""
    copier = offloading.copier(llm)
    answers(llm, PROMPTS, [None] * 4)
    assert copier.jobs, "all was copied at once: nothing is tested"
    waited = copier.waited
    assert answers(llm, PROMPTS, [policy] * 4, warm=True) == [expected(llm, policy, n) for n in range(4)]
    assert copier.waited > waited
    offloading.finish_copies(llm)
    loaded = copier.loaded
    assert answers(llm, PROMPTS, [None] * 4) == [expected(llm, None, n) for n in range(4)]
    assert copier.loaded > loaded


def test_blocks_are_copied_before_a_compaction_writes_them(llm):
    """A compaction takes the blocks of a request that has ended since, as the pool has hardly any others."""
    engine, scheduler, copier = llm.llm_engine, harness.scheduler(llm), offloading.copier(llm)
    engine.add_request("ends", {"prompt_token_ids": PROMPTS[3]}, harness.params(None, LENGTH))
    engine.step()
    engine.step()
    policy = {"name": "streaming", "budget": 600, "slack": 32}
    engine.add_request("stays", {"prompt_token_ids": harness.tokens(1000, seed=77)}, harness.params(policy, 20))
    engine.step()
    ends, stays = scheduler.running
    while stays.num_computed_tokens < stays.num_prompt_tokens:
        engine.step()
    waited = copier.waited
    engine.abort_request([ends.request_id], internal=True)
    engine.step()
    assert scheduler.kv.shrunk(stays.request_id)
    assert copier.waited > waited
    drain(llm)
    offloading.finish_copies(llm)
    loaded = copier.loaded
    assert answers(llm, PROMPTS[3:], [None]) == [expected(llm, None, 3)]
    assert copier.loaded > loaded


def test_traffic_with_preemptions(llm):
    """More than the pool holds, twice: what the second time is loaded was stored beside compactions."""
    preempted, copier = count_preemptions(llm), offloading.copier(llm)
    mixed = [None, POLICIES[0], None, POLICIES[1], None, POLICIES[2], None, POLICIES[0]]
    which = [0, 1, 2, 3, 3, 2, 1, 0]
    wanted = [expected(llm, policy, n) for policy, n in zip(mixed, which, strict=True)]
    loaded = copier.loaded
    for _ in range(3):
        assert answers(llm, [PROMPTS[n] for n in which], mixed) == wanted
    assert preempted["count"] > 0
    assert copier.loaded > loaded


@pytest.mark.parametrize("steps", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5)), 20])
def test_aborts(llm, steps):
    engine = llm.llm_engine
    for _ in range(2):
        for n, policy in enumerate([None, POLICIES[0], None, POLICIES[2]]):
            engine.add_request(f"a{n}", {"prompt_token_ids": PROMPTS[n]}, harness.params(policy, LENGTH))
        for _ in range(steps):
            engine.step()
        engine.abort_request(list(harness.scheduler(llm).requests), internal=True)
        assert answers(llm, PROMPTS[:1], [POLICIES[1]], warm=True) == [expected(llm, POLICIES[1], 0)]
    assert answers(llm, PROMPTS, [None] * 4, warm=True) == [expected(llm, None, n) for n in range(4)]

"""Shared compressed prefixes: who starts from one says what it would have said had it compressed the prompt itself."""

import random
from functools import partial
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from tests.engine import harness
from tests.engine.fuzz import Traffic
from tests.engine.test_pool import drain

PROMPT = harness.tokens(330, seed=7)
BLOCK = harness.BLOCK
PLACES = [(90, 180), (64, 192), (65, 191), (96, 193)]
"""Budget and `at`: what is left fills its last block, or not, or by one token, and so does what was read."""


@pytest.fixture(scope="module", params=[(1, False), (4, True)], ids=["1group", "4groups-async"])
def llm(request):
    groups, asynchronous = request.param
    with harness.scheduling(asynchronous):
        engine = harness.start(blocks=256 * groups, max_num_batched_tokens=160, options={"groups": groups})
    yield engine
    harness.stop(engine)


@pytest.fixture(scope="module", params=[(1, False), (4, True)], ids=["1group", "4groups-async"])
def small(request):
    groups, asynchronous = request.param
    with harness.scheduling(asynchronous):
        engine = harness.start(
            blocks=130 * groups + 1, max_model_len=1024, max_num_batched_tokens=256, options={"groups": groups}
        )
    yield engine
    harness.stop(engine)


def check(llm) -> None:
    """Scheduler and worker know the same prefixes, once the worker has heard of the last step."""
    scheduler = harness.scheduler(llm)
    scheduler.check_integrity()
    assert set(harness.runner(llm).kv.held._held) == {each.id for each in scheduler.kv_prefixes}


def policies(llm) -> list[dict[str, Any]]:
    more = {"triattention": {"protect_prompt": False}}
    return [{**p, **more.get(p["name"], {})} for p in harness.policies(llm)]


def ask(llm, policy, prompt=PROMPT, length=40, **more) -> tuple[list[int], list[float], dict[str, Any]]:
    params = harness.params(policy, length)
    [output] = llm.generate([{"prompt_token_ids": prompt, **more}], [params], use_tqdm=False)
    return *harness.said(output), harness.outcome(output)


def own(llm, policy, prompt=PROMPT, length=40, **more):
    """What the request says that compresses the prompt itself."""
    assert llm.reset_prefix_cache()
    return ask(llm, {**policy, "share": False}, prompt, length, **more)


@pytest.mark.parametrize("index", range(len(PLACES)))
def test_same_as_compressing_itself(llm, index):
    """With compactions after the shared one, and another text behind the prefix: all policies, each at one place."""
    for i, policy in enumerate(policies(llm)):
        if i % len(PLACES) == index:
            same(llm, policy, *PLACES[index])


@pytest.mark.slow
def test_all_policies_at_all_places(llm):
    for policy in policies(llm):
        for place in PLACES:
            same(llm, policy, *place)


def same(llm, policy, budget, at):
    asked = {**policy, "budget": budget, "at": at, "slack": 16, "share": True}
    other = PROMPT[:at] + harness.tokens(70, seed=99)
    expected, expected_other = own(llm, asked), own(llm, asked, other)
    assert llm.reset_prefix_cache()
    found = [ask(llm, asked), ask(llm, asked), ask(llm, asked, other)]
    where = f"{policy['name']} {budget} {at}"
    assert [tokens for tokens, _, _ in found] == [expected[0], expected[0], expected_other[0]], where
    assert max(abs(a - b) for a, b in zip(found[1][1], expected[1], strict=True)) < 1e-4, where
    usage, alone = found[1][2], expected[2]
    assert [each["shared_tokens"] for _, _, each in found] == [0, at, at], where
    for name in ("logical_tokens", "kept_tokens", "evicted_tokens", "full_bytes", "resident_bytes"):
        assert usage[name] == alone[name], (where, name)
    assert usage["compactions"] == alone["compactions"] - 1, where
    harness.scheduler(llm).check_integrity()


def test_many_at_once(llm):
    """Some find the prefix, some come too early and make it themselves."""
    for name in ("keydiff", "h2o", "snapkv", "random"):
        asked = {"name": name, "budget": 90, "at": 180, "slack": 16, "share": True}
        prompts = [PROMPT[:180] + harness.tokens(20 + 10 * i, seed=i) for i in range(6)]
        expected = [own(llm, asked, prompt)[0] for prompt in prompts]
        outputs = harness.generate(llm, prompts, [asked] * 6)
        assert [harness.said(output)[0] for output in outputs] == expected
        again = harness.generate(llm, prompts, [asked] * 6, warm=True)
        assert [harness.said(output)[0] for output in again] == expected
        assert [harness.outcome(output)["shared_tokens"] for output in again] == [180] * 6
        assert [output.num_cached_tokens for output in again] == [180] * 6


def test_blocks_are_held_once(llm):
    """A second copy of the prefix is one block of each group that it fills partly."""
    asked = {"name": "streaming", "budget": 4 * BLOCK + 5, "at": 300, "share": True, "decode": False}
    groups = len(harness.scheduler(llm).kv.managers)
    assert llm.reset_prefix_cache()
    ask(llm, asked, length=2)
    free = harness.free_blocks(llm)
    for i in range(5):
        llm.llm_engine.add_request(f"s{i}", {"prompt_token_ids": PROMPT[:310]}, harness.params(asked, 30))
    while len(harness.scheduler(llm).running) < 5:
        llm.llm_engine.step()
    for _ in range(3):
        llm.llm_engine.step()
    assert free - harness.free_blocks(llm) == groups * (4 + 5)
    drain(llm)
    assert harness.free_blocks(llm) == free


def test_a_conversation_starts_from_what_the_last_turn_left(llm):
    """The longest prefix wins; what it lacks is read, and compressed at the new place."""
    policy = {"name": "keydiff", "budget": 0.25, "share": True}
    assert llm.reset_prefix_cache()
    shared = []
    for at in (100, 180, 300):
        usage = ask(llm, {**policy, "at": at}, PROMPT[: at + 20], length=8)[2]
        shared.append(usage["shared_tokens"])
        assert usage["kept_tokens"] <= 0.25 * at + 20 + 8 + 128
        assert usage["compactions"] == 1
    assert shared == [0, 100, 180]
    assert ask(llm, {**policy, "at": 320})[2]["shared_tokens"] == 300
    assert ask(llm, {**policy, "at": 250})[2]["shared_tokens"] == 180, "not one that ends behind the place"
    assert ask(llm, {**policy, "at": 250, "slack": 64})[2]["shared_tokens"] == 0, "all parameters are the same"
    assert ask(llm, {**policy, "name": "knorm", "at": 250})[2]["shared_tokens"] == 0
    check(llm)


def test_preempted(llm):
    """With the prefix gone, and with it there."""
    for name in ("h2o", "tova", "keydiff", "scissorhands"):
        grouped = {"granularity": "group"} if name == "scissorhands" else {}
        asked = {"name": name, "budget": 90, "at": 180, "slack": 16, "share": True, **grouped}
        expected = own(llm, asked, length=120)[0]
        for reset in (True, False):
            assert llm.reset_prefix_cache()
            ask(llm, asked, length=3)
            found, steps = None, 0
            llm.llm_engine.add_request("p", {"prompt_token_ids": PROMPT}, harness.params(asked, 120))
            while llm.llm_engine.has_unfinished_requests():
                for output in llm.llm_engine.step():
                    found = output if output.finished else found
                steps += 1
                if steps in (2, 30, 31):
                    preempt(llm, reset)
                harness.scheduler(llm).check_integrity()
            assert harness.said(found)[0] == expected, (name, reset)
            assert harness.outcome(found)["shared_tokens"] == 180


def preempt(llm, reset: bool) -> None:
    scheduler = harness.scheduler(llm)
    if reset:
        scheduler.reset_prefix_cache(reset_running_requests=True)
        return
    while scheduler.running:
        scheduler._preempt_request(scheduler.running.pop(), 0.0, drop_stale_output=True)
    scheduler.prev_step_scheduled_req_ids.clear()


def test_tenants_do_not_meet(llm):
    """1,000 salts, each of a tenant that tries the prompt of another one."""
    asked = {"name": "streaming", "budget": 20, "at": 60, "share": True}
    assert llm.reset_prefix_cache()
    held = harness.scheduler(llm).kv_prefixes
    drawn = random.Random(0)
    for start in range(0, 1000, 50):
        prompts = [
            {"prompt_token_ids": PROMPT[:70], "cache_salt": f"secret {start + drawn.randrange(10**6)} {i}"}
            for i in range(50)
        ]
        outputs = llm.generate(prompts, [harness.params(asked, 2)] * 50, use_tqdm=False)
        assert {harness.outcome(output)["shared_tokens"] for output in outputs} == {0}
        assert {output.num_cached_tokens for output in outputs} == {0}
        again = llm.generate(prompts[-1:], [harness.params(asked, 2)], use_tqdm=False)
        assert harness.outcome(again[0])["shared_tokens"] == 60, "its own it finds"
    assert ask(llm, asked, PROMPT[:70])[2]["shared_tokens"] == 0
    assert 0 < len(held) < 1000, "the pool is too small for all of them"
    drain(llm)
    check(llm)


def test_dropped_while_it_is_used(llm):
    asked = {"name": "tova", "budget": 90, "at": 180, "slack": 16, "share": True}
    expected = own(llm, asked)[0]
    assert llm.reset_prefix_cache()
    ask(llm, asked, length=1)
    scheduler = harness.scheduler(llm)
    [held] = scheduler.kv_prefixes
    llm.llm_engine.add_request("d", {"prompt_token_ids": PROMPT}, harness.params(asked))
    llm.llm_engine.step()
    core = llm.llm_engine.engine_core.engine_core
    assert core.kv_drop_prefix(held.id) and not core.kv_drop_prefix(held.id)
    found = None
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            found = output
        scheduler.check_integrity()
    assert harness.said(found)[0] == expected
    assert harness.outcome(found)["shared_tokens"] == 180
    assert not len(harness.runner(llm).kv.held)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_traffic(small, seed):
    """On a tiny pool, each step checked: prefixes are made, taken and given away; answers stay what they are."""
    before, hits = harness.free_blocks(small), taken(small)
    late = compacted_late(small)
    traffic = Traffic(small, seed, f"share{seed}-", sharing=0.8)
    traffic.run(90)
    assert set(traffic.answers) | traffic.aborted == set(traffic.sent)
    drain(small)
    check(small)
    assert harness.free_blocks(small) == before
    assert taken(small) > hits
    assert traffic.seen["prefixes"] > 0
    sharing = [r for r, (_, policy, _) in traffic.sent.items() if policy and "share" in policy and r in traffic.answers]
    for req_id in sharing:
        prompt, policy, length = traffic.sent[req_id]
        if not any(other.startswith(f"{req_id}-") for other in late):
            assert own(small, policy, prompt, length)[0] == traffic.answers[req_id], req_id


def taken(llm) -> int:
    return sum(each.prefix_hits for each in harness.scheduler(llm).kv.totals.policies.values())


def compacted_late(llm) -> set[str]:
    """Requests whose compaction found no blocks to go to when it was due: what they keep depends on load."""
    late = set()
    for manager in harness.scheduler(llm).kv.managers.values():
        manager.compact = partial(noting, type(manager).compact, manager, late)
    return late


def noting(compact, manager, late, req_id, *args):
    moved = compact(manager, req_id, *args)
    if moved is None:
        late.add(req_id)
    return moved


def test_nothing_is_left(llm):
    drain(llm)
    check(llm)
    assert harness.free_blocks(llm) == 256 * len(harness.scheduler(llm).kv.managers) - 1
    assert not harness.runner(llm).kv.requests and not len(harness.runner(llm).kv.queries)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, r"kv_policy\.share says to keep the prompt up to kv_policy\.at"),
        ({"at": 10, "when": "pressure"}, r"kv_policy\.share is true and kv_policy\.when is 'pressure'"),
        ({"at": 10, "prefill": "chunks"}, r"kv_policy\.share is true and kv_policy\.prefill is 'chunks'"),
        ({"at": 10, "share": "yes"}, r"kv_policy\.share is 'yes'"),
    ],
)
def test_refused(llm, fields, said):
    with pytest.raises(VLLMValidationError, match=said):
        ask(llm, {"name": "streaming", "share": True, **fields})


def test_not_where_nothing_is_cached():
    llm = harness.start(enable_prefix_caching=False)
    try:
        with pytest.raises(VLLMValidationError, match="without prefix caching"):
            ask(llm, {"name": "streaming", "share": True, "at": 10})
    finally:
        harness.stop(llm)


def test_a_pool_with_no_room_for_copies():
    """Blocks for one request: prefixes come and go, nothing waits for ever, and answers stay what they are."""
    llm = harness.start(blocks=13, max_num_batched_tokens=160, options={"resident_tokens": 330})
    try:
        prompts = [harness.tokens(300, seed=i) for i in range(4)]
        asked = [{"name": "h2o", "budget": 40 + 9 * i, "at": 280, "slack": 16, "share": True} for i in range(4)]
        expected = [own(llm, *pair)[0] for pair in zip(asked, prompts, strict=True)]
        for _ in range(3):
            outputs = harness.generate(llm, prompts * 2, asked * 2, warm=True)
            assert [harness.said(output)[0] for output in outputs] == expected * 2
            drain(llm)
            check(llm)
    finally:
        harness.stop(llm)

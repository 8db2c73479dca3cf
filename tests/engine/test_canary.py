"""Replays inside a real engine: right whatever the prefix cache holds, in small steps, and without a trace."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from kvserve.policy import request as wire
from kvserve.policy.request import CANARY_CHUNK
from server.canary.replay import Judgement, Replay, judged, replay_of
from tests.engine import harness

PROMPT = harness.tokens(700, seed=5)
POLICY = '{"name": "streaming", "budget": 48}'
GENERATED = 100
SLIP = 30


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def llm(request: pytest.FixtureRequest) -> Iterator[Any]:
    with harness.scheduling(request.param):
        llm = harness.start(blocks=129)
    yield llm
    harness.stop(llm)


@pytest.fixture(scope="module")
def answer(llm: Any) -> list[int]:
    """What a compressed request generated, with a slip in it that the full cache would not have made."""
    (output,) = harness.generate(llm, [PROMPT], [POLICY], GENERATED)
    found = harness.said(output)[0]
    return [*found[:SLIP], found[SLIP] + 1, *found[SLIP + 1 :]]


def _replay(llm: Any, answer: list[int]) -> Replay:
    params = harness.params(POLICY)
    tasks = llm.llm_engine.get_supported_tasks()
    request = llm.llm_engine.input_processor.process_inputs("user", {"prompt_token_ids": PROMPT}, params, tasks)
    return replay_of(request, answer, llm.llm_engine.vllm_config).again()


def _asked(llm: Any, replay: Replay) -> tuple[Judgement | None, list[int]]:
    """The engine's judgement, and how many tokens each step computed."""
    core, steps = llm.llm_engine.engine_core, []
    stock = harness.scheduler(llm).schedule

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        steps.append(output.total_num_scheduled_tokens)
        assert harness.scheduler(llm).kv._users() == ([], 0)
        return output

    harness.scheduler(llm).schedule = schedule
    try:
        core.add_request(replay.request)
        while not (outputs := core.get_output().outputs):
            pass
    finally:
        harness.scheduler(llm).schedule = stock
    return judged(replay, outputs[0]), [step for step in steps if step]


def _expected(llm: Any, answer: list[int]) -> Judgement:
    """From vLLM's own log-probabilities of the prompt, without kvserve's mark."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    (output,) = llm.generate([{"prompt_token_ids": PROMPT + answer}], [params], use_tqdm=False)
    same = [step[token].rank == 1 for step, token in zip(output.prompt_logprobs[len(PROMPT) :], answer, strict=True)]
    return Judgement(sum(same) / len(same), [*same, False].index(False) / len(same))


def _cached(llm: Any) -> set[Any]:
    pool = harness.scheduler(llm).kv_cache_manager.block_pool
    return {block.block_hash for block in pool.blocks if block.block_hash is not None}


@pytest.mark.parametrize("cached", ["nothing", "prompt", "answer"])
def test_judgement(llm: Any, answer: list[int], cached: str) -> None:
    assert llm.reset_prefix_cache()
    expected = _expected(llm, answer)  # and now the answer is in the cache, too
    assert expected.same_prefix <= SLIP / GENERATED < expected.agreement < 1
    if cached != "answer":
        assert llm.reset_prefix_cache()
    if cached == "prompt":
        harness.generate(llm, [PROMPT], [None], 1, warm=True)
    before, free = _cached(llm), harness.free_blocks(llm)
    found, steps = _asked(llm, _replay(llm, answer))
    assert found == expected
    assert max(steps) <= CANARY_CHUNK
    whole = len(PROMPT) + GENERATED
    assert sum(steps) == (whole if cached == "nothing" else whole - (len(PROMPT) - 1) // harness.BLOCK * harness.BLOCK)
    assert (_cached(llm), harness.free_blocks(llm)) == (before, free)
    assert not harness.scheduler(llm).kv_requests
    harness.scheduler(llm).check_integrity()


def test_it_is_in_no_totals(llm: Any, answer: list[int]) -> None:
    totals = harness.scheduler(llm).kv.totals
    before = totals.dump().partition(",")[2]
    _asked(llm, _replay(llm, answer))
    assert totals.dump().partition(",")[2] == before


def test_an_aborted_one_is_forgotten(llm: Any, answer: list[int]) -> None:
    assert llm.reset_prefix_cache()
    core, free = llm.llm_engine.engine_core, harness.free_blocks(llm)
    replay = _replay(llm, answer)
    core.add_request(replay.request)
    core.get_output()
    assert harness.free_blocks(llm) < free and harness.scheduler(llm).kv_requests
    core.abort_requests([replay.request.request_id])
    while harness.scheduler(llm).has_requests():
        core.get_output()
    assert harness.free_blocks(llm) == free and not harness.scheduler(llm).kv_requests
    assert not _cached(llm)
    harness.scheduler(llm).check_integrity()


def test_a_clients_request_cannot_pass_for_one(llm: Any) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, extra_args={wire.CANARY: 1})
    before = harness.scheduler(llm).kv.totals.of("full").requests
    llm.generate([{"prompt_token_ids": PROMPT}], [params], use_tqdm=False)
    assert harness.scheduler(llm).kv.totals.of("full").requests == before + 1

"""Sampling, waiting and giving way, with an engine that answers when the test says so."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

import server.canary.canary
from kvserve.policy import request as wire
from kvserve.policy.salts import salted
from kvserve.policy.types import Facts
from server.canary.canary import QUALITY, TRIES, WAITING, WAITING_TOKENS, Canary
from server.canary.replay import Judgement, Replay, judged

QUIET = 0.02


def replay(tokens: int = 10, prompt: int = 6, policy: str = "streaming") -> Replay:
    request = EngineCoreRequest(
        request_id="user",
        prompt_token_ids=list(range(tokens)),
        mm_features=None,
        sampling_params=SamplingParams(temperature=0),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return Replay(policy, request, prompt)


def answer(asked: Replay, same: list[bool]) -> Any:
    """As the engine's output: for each token its own log-probability and the best one, nonsense before the answer."""
    rows = [[-9.0, -1.0]] * (asked.prompt - 1) + [[-1.0, -1.0] if agrees else [-2.0, -1.0] for agrees in same]
    tensors = SimpleNamespace(logprobs=torch.tensor(rows))
    return SimpleNamespace(
        request_id=asked.request.request_id, finish_reason="length", new_prompt_logprobs_tensors=tensors
    )


class FakeEngine:
    def __init__(self) -> None:
        self.users = 0
        self.sent: list[Replay] = []
        self.log: list[str] = []
        self.able = True

    def can(self, asked: Replay) -> bool:
        return self.able

    def busy(self) -> bool:
        return self.users > 0

    async def send(self, asked: Replay) -> None:
        self.sent.append(asked)
        self.log.append("replay")

    async def abort(self, asked: Replay) -> None:
        assert asked is self.sent[-1]
        self.log.append("abort")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(QUIET / 10)


def play(scene: Callable[[Canary, FakeEngine], Awaitable[None]]) -> Canary:
    """Run a scene with a canary that lives; returns the canary."""

    async def on_stage() -> Canary:
        engine = FakeEngine()
        canary = Canary(1.0, engine, quiet=QUIET)
        life = asyncio.create_task(canary.run())
        await scene(canary, engine)
        life.cancel()
        return canary

    return asyncio.run(on_stage())


# -- which requests ---------------------------------------------------------------------------------------


def test_a_share_is_chosen() -> None:
    draws = iter([0.0, 0.24, 0.25, 0.99])
    canary = Canary(0.25, FakeEngine(), draw=lambda: next(draws))
    assert [canary.chooses() for _ in range(4)] == [True, True, False, False]


def test_all_are_chosen_at_rate_one() -> None:
    assert all(Canary(1.0, FakeEngine()).chooses() for _ in range(100))


def test_the_oldest_are_dropped() -> None:
    canary = Canary(1.0, FakeEngine())
    for _ in range(WAITING + 3):
        canary.keep(replay())
    assert canary.findings.waiting == WAITING
    assert canary.findings.outcomes["dropped"] == 3


def test_what_the_engine_cannot_ask_any_more_is_dropped() -> None:
    async def scene(canary: Canary, engine: FakeEngine) -> None:
        engine.able = False
        canary.keep(replay())
        await until(lambda: canary.findings.outcomes["dropped"] == 1)
        engine.able = True
        canary.keep(replay(policy="tova"))
        await until(lambda: bool(engine.sent))
        assert [asked.policy for asked in engine.sent] == ["tova"]

    play(scene)


def test_long_ones_are_fewer() -> None:
    canary = Canary(1.0, FakeEngine())
    for _ in range(3):
        canary.keep(replay(WAITING_TOKENS // 2))
    assert (canary.findings.waiting, canary.findings.outcomes["dropped"]) == (2, 1)


# -- when -------------------------------------------------------------------------------------------------


def test_nothing_is_asked_while_a_client_waits() -> None:
    async def scene(canary: Canary, engine: FakeEngine) -> None:
        engine.users = 1
        canary.keep(replay())
        await asyncio.sleep(4 * QUIET)
        assert not engine.sent
        engine.users = 0
        canary.ended()
        await asyncio.sleep(QUIET / 2)
        assert not engine.sent  # the client may have a next question
        await until(lambda: bool(engine.sent))

    play(scene)


def test_one_at_a_time_and_the_oldest_first() -> None:
    async def scene(canary: Canary, engine: FakeEngine) -> None:
        for policy in ("knorm", "tova"):
            canary.keep(replay(policy=policy))
        await until(lambda: bool(engine.sent))
        await asyncio.sleep(4 * QUIET)
        assert [asked.policy for asked in engine.sent] == ["knorm"]
        canary.answered(answer(engine.sent[0], [True] * 4))
        await until(lambda: len(engine.sent) == 2)
        assert engine.sent[1].policy == "tova"

    play(scene)


def test_a_request_interrupts_and_is_sent_second() -> None:
    async def scene(canary: Canary, engine: FakeEngine) -> None:
        canary.keep(replay())
        await until(lambda: bool(engine.sent))
        await canary.arrived()
        engine.log.append("request")
        engine.users = 1
        await asyncio.sleep(3 * QUIET)
        assert engine.log == ["replay", "abort", "request"]
        assert canary.findings.waiting == 1  # put back
        canary.answered(answer(engine.sent[0], [True] * 4))  # of the engine's last step: too late
        engine.users = 0
        canary.ended()
        await until(lambda: len(engine.sent) == 2)
        canary.answered(answer(engine.sent[0], [True] * 4))  # nor is it the answer to the second question
        await asyncio.sleep(QUIET)
        assert canary.findings.outcomes["judged"] == 0
        canary.answered(answer(engine.sent[1], [True] * 4))
        await until(lambda: canary.findings.outcomes["judged"] == 1)

    assert play(scene).findings.outcomes["interrupted"] == 1


def test_it_is_not_tried_for_ever() -> None:
    async def scene(canary: Canary, engine: FakeEngine) -> None:
        canary.keep(replay())
        for number in range(1, TRIES + 1):
            await until(lambda: len(engine.sent) == number)  # noqa: B023
            await canary.arrived()
        await asyncio.sleep(4 * QUIET)
        assert len(engine.sent) == TRIES and canary.findings.waiting == 0

    outcomes = play(scene).findings.outcomes
    assert (outcomes["interrupted"], outcomes["dropped"]) == (TRIES, 1)


def test_an_engine_that_fails_ends_one_replay_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.canary.canary.logger, "exception", lambda *_: None)

    async def scene(canary: Canary, engine: FakeEngine) -> None:
        stock, engine.send = engine.send, _broken  # type: ignore[method-assign]
        canary.keep(replay())
        await until(lambda: canary.findings.outcomes["failed"] == 1)
        engine.send = stock  # type: ignore[method-assign]
        canary.keep(replay())
        await until(lambda: bool(engine.sent))
        nothing = answer(engine.sent[0], [True])
        nothing.new_prompt_logprobs_tensors = None
        canary.answered(nothing)
        await until(lambda: canary.findings.outcomes["failed"] == 2)

    play(scene)


async def _broken(_: Replay) -> None:
    raise RuntimeError("engine")


# -- what is found ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("same", "judgement"),
    [
        ([True, True, True, True], Judgement(1.0, 1.0)),
        ([True, False, True, True], Judgement(0.75, 0.25)),
        ([False, True, True, True], Judgement(0.75, 0.0)),
        ([True, True, True, False], Judgement(0.75, 0.75)),
    ],
)
def test_judgement(same: list[bool], judgement: Judgement) -> None:
    asked = replay()
    assert judged(asked, answer(asked, same)) == judgement


def test_findings_are_by_policy() -> None:
    async def scene(canary: Canary, engine: FakeEngine) -> None:
        for number, policy in enumerate(["knorm", "tova", "knorm"]):
            canary.keep(replay(policy=policy))
            await until(lambda: len(engine.sent) == number + 1)  # noqa: B023
            canary.answered(answer(engine.sent[number], [True, True, True, policy == "tova"]))
        await until(lambda: canary.findings.outcomes["judged"] == 3)

    quality = play(scene).findings.quality
    assert quality["agreement"]["knorm"].total == quality["same_prefix"]["knorm"].total == 1.5
    assert quality["agreement"]["tova"].counts[QUALITY.index(1.0)] == 1


# -- which requests can be judged -------------------------------------------------------------------------

CONFIG: Any = SimpleNamespace(model_config=SimpleNamespace(logits_processors=None, max_model_len=100))


def finished(**params: Any) -> EngineCoreRequest:
    extra = {wire.KEY: '{"budget": 0.5, "name": "knorm"}', wire.CALL: "c"}
    request = replay(8).request
    request.sampling_params = SamplingParams(**{"temperature": 0, "extra_args": extra, **params})
    return request


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts(num_layers=4, groups=1, block_size=16, pool_tokens=60, max_model_len=100, chunk=512)
    monkeypatch.setattr("server.canary.replay.facts_of", lambda _: facts)


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(
    ("params", "generated", "reason"),
    [
        ({}, 5, None),
        ({"ignore_eos": True, "stop": ["x"], "logprobs": 3}, 5, None),
        ({}, 0, "empty"),
        ({"temperature": 0.7}, 5, "sampled"),
        ({"repetition_penalty": 1.1}, 5, "constrained"),
        ({"min_tokens": 2}, 5, "constrained"),
        ({"logit_bias": {3: 1.0}}, 5, "constrained"),
        ({"allowed_token_ids": [1, 2]}, 5, "constrained"),
        ({"bad_words": ["x"]}, 5, "constrained"),
        ({}, 60, "too_long"),
    ],
)
def test_what_cannot_be_judged(params: dict[str, Any], generated: int, reason: str | None) -> None:
    from server.canary.replay import unfit

    assert unfit(finished(**params), [1] * generated, CONFIG) == reason


@pytest.mark.usefixtures("roomy")
def test_pictures_and_embeddings_cannot() -> None:
    from server.canary.replay import unfit

    request = finished()
    request.mm_features = [object()]  # type: ignore[list-item]
    assert unfit(request, [1], CONFIG) == "multimodal"
    request = finished()
    request.prompt_embeds = torch.zeros(8, 4)
    assert unfit(request, [1], CONFIG) == "multimodal"


@pytest.mark.parametrize(
    ("processes", "engines", "local", "sharing", "why"),
    [
        (1, 1, False, False, None),
        (1, 2, False, False, None),
        (2, 1, False, False, "--api-server-count 1"),
        (1, 2, True, False, "other servers"),
        (1, 1, False, True, "--kv-sharing-fast-prefill"),
    ],
)
def test_where_there_can_be_none(processes: int, engines: int, local: bool, sharing: bool, why: str | None) -> None:
    from server.canary.replay import refusal

    parallel = SimpleNamespace(_api_process_count=processes, data_parallel_size=engines, local_engines_only=local)
    cache = SimpleNamespace(kv_sharing_fast_prefill=sharing)
    said = refusal(SimpleNamespace(parallel_config=parallel, cache_config=cache))
    assert said is None if why is None else why in str(said)


@pytest.mark.usefixtures("roomy")
def test_a_replay_keeps_what_belongs_to_the_request_and_nothing_else() -> None:
    from server.canary.replay import replay_of

    request = finished(stop=["x"])
    request.cache_salt, request.trace_headers, request.session_id = "tenant", {"traceparent": "x"}, "s"
    request.lora_request = adapter = SimpleNamespace(lora_name="a")  # type: ignore[assignment]
    made = replay_of(request, [90, 91, 92], CONFIG)
    assert (made.policy, made.prompt, made.tokens) == ("knorm", 8, 11)
    assert made.request.prompt_token_ids == [*range(8), 90, 91, 92]
    assert (made.request.cache_salt, made.request.lora_request) == ("tenant", adapter)
    assert (made.request.trace_headers, made.request.session_id) == (None, None)
    params = made.request.sampling_params
    assert params is not None
    assert (params.max_tokens, params.temperature, params.stop) == (1, 0, [])
    assert params.extra_args == {wire.CANARY: 8}  # no policy: at full cache
    assert made.again().request.request_id != made.again().request.request_id


@pytest.mark.usefixtures("roomy")
def test_an_answer_to_the_models_limit_loses_its_last_token() -> None:
    from server.canary.replay import replay_of

    made = replay_of(finished(), list(range(92)), CONFIG)
    assert made.tokens == 99 and made.request.prompt_token_ids is not None
    assert made.request.prompt_token_ids[-1] == 90


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(
    ("salt", "own"),
    [(salted(None, "mark"), None), (salted("tenant", "mark"), "tenant"), ("tenant", "tenant"), (None, None)],
)
def test_a_replay_has_no_salt_of_the_policy(salt: str | None, own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt may be found in the prefix cache where the full cache's is, not where the policy's is."""
    from policies.knorm import KNorm
    from server.canary.replay import replay_of

    monkeypatch.setattr(KNorm, "salt", "mark")
    request = finished()
    request.cache_salt = salt
    assert replay_of(request, [90], CONFIG).request.cache_salt == own

"""One real `kvserve serve` with the embedded model, used through OpenAI's own client."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.server.running import FIELDS, KEY, MODEL, ServerUnderTest, serving, wait_for

pytest.importorskip("vllm")

BLOCKS = 64  # of 128 tokens: less than one request of max-model-len, so that some are refused as too long
LENGTH = 8192
TEXT = "the cat sat on the mat and the dog ran away . " * 60
MESSAGES: Any = [{"role": "user", "content": TEXT}]
QUARTER = {"kv_policy": "streaming:0.25"}


def _tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(10, 2000), k=count)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    command = ["kvserve", "serve", "mini", "--max-model-len", str(LENGTH), "--kv-resident-tokens", "4096"]
    command += ["--num-gpu-blocks-override", str(BLOCKS), "--max-num-batched-tokens", "2048"]
    with serving(tmp_path_factory.mktemp("server") / "log", command) as running:
        yield running


@pytest.fixture
def client(server: ServerUnderTest) -> openai.OpenAI:
    return server.client


def _compressed(usage: Any, policy: str = "streaming") -> dict[str, Any]:
    """Checks what holds for every outcome of a compressed request, and returns it."""
    outcome: dict[str, Any] = usage.kv_cache
    assert set(outcome) == FIELDS
    assert outcome["policy"] == policy
    assert outcome["kept_tokens"] + outcome["evicted_tokens"] == pytest.approx(outcome["logical_tokens"])
    assert 0 < outcome["kept_tokens"] < outcome["logical_tokens"]
    assert 0 < outcome["resident_bytes"] < outcome["full_bytes"]
    assert outcome["compactions"] >= 1
    return outcome


# -- the three endpoints ------------------------------------------------------------------------------


def test_embedded_model_is_served_under_its_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, extra_body=QUARTER)
    assert answer.usage is not None
    outcome = _compressed(answer.usage)
    assert outcome["logical_tokens"] == answer.usage.total_tokens - 1  # the last token is never read
    assert outcome["budget"] == 0.25


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=QUARTER,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    _compressed(chunks[-1].usage)


def test_stream_without_include_usage_says_nothing_of_the_cache(server: ServerUnderTest) -> None:
    chunks = list(server.complete(TEXT, "streaming:0.25", stream=True))
    assert all(chunk.usage is None for chunk in chunks)


def test_completion_stream(server: ServerUnderTest) -> None:
    whole = server.complete(TEXT, "streaming:0.25")
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(server.complete(TEXT, "streaming:0.25", stream=True, stream_options=options))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert not any(hasattr(chunk.usage, "kv_cache") for chunk in chunks[:-1])
    assert _compressed(chunks[-1].usage) == whole.usage.kv_cache


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=TEXT, max_output_tokens=8, extra_body=QUARTER)
    assert answer.usage is not None
    assert _compressed(answer.usage)["logical_tokens"] == answer.usage.total_tokens - 1


def test_responses_stream(client: openai.OpenAI) -> None:
    events: list[Any] = list(
        client.responses.create(model=MODEL, input=TEXT, max_output_tokens=8, stream=True, extra_body=QUARTER)
    )
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")  # as vLLM 0.33 says when tokens ran out
    _compressed(events[-1].response.usage)


def test_several_sequences_are_summed(client: openai.OpenAI, server: ServerUnderTest) -> None:
    one = server.complete(TEXT, "streaming:0.25").usage.kv_cache
    two = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2, max_tokens=8, extra_body=QUARTER)
    assert two.usage is not None
    assert _compressed(two.usage)["logical_tokens"] == 2 * (two.usage.prompt_tokens + 7)
    four = server.complete([TEXT, TEXT], "streaming:0.25", n=2, temperature=1)
    assert len(four.choices) == 4
    for field in ("logical_tokens", "kept_tokens", "resident_bytes", "full_bytes", "compactions"):
        assert four.usage.kv_cache[field] == 4 * one[field]


def test_what_vllm_answers_stays(server: ServerUnderTest) -> None:
    answer = server.complete(TEXT, "streaming:0.25", logprobs=2, max_tokens=4, extra_body={"return_token_ids": True})
    assert len(answer.choices[0].logprobs.tokens) == 4
    assert len(answer.choices[0].token_ids) == 4
    assert answer.kv_transfer_params is None


def test_stop_string(server: ServerUnderTest) -> None:
    text = server.complete(TEXT, "streaming:0.25").choices[0].text
    answer = server.complete(TEXT, "streaming:0.25", stop=[text[5:7]])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == text[: text.index(text[5:7])]


def test_stop_string_reports_the_cache(server: ServerUnderTest) -> None:
    text = server.complete(TEXT, "streaming:0.25").choices[0].text
    _compressed(server.complete(TEXT, "streaming:0.25", stop=[text[5:7]]).usage)


# -- who says which policy ----------------------------------------------------------------------------


def test_header_and_xargs(server: ServerUnderTest) -> None:
    header = {"X-KV-Policy": "snapkv:0.25"}
    raw = server.client.completions.with_raw_response.create(
        model=MODEL, prompt=TEXT, max_tokens=4, extra_headers=header
    )
    assert raw.headers["x-kv-policy"] == "snapkv:0.25"
    _compressed(raw.parse().usage, "snapkv")
    assert _compressed(server.complete(TEXT, extra_headers=header, policy="knorm:0.25").usage, "knorm")
    xargs = {"vllm_xargs": {"kv_policy": "random:0.25"}}
    _compressed(server.complete(TEXT, extra_body=xargs).usage, "random")
    _compressed(server.complete(TEXT, extra_body=xargs, extra_headers=header).usage, "snapkv")


@pytest.mark.parametrize("policy", [None, "full"])
def test_no_compression_says_nothing(server: ServerUnderTest, policy: str | None) -> None:
    raw = server.http.post(
        "/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 2, "kv_policy": policy}
    )
    assert "kv_cache" not in raw.json()["usage"]
    assert "x-kv-policy" not in raw.headers


def test_budget_over_the_length_changes_nothing(server: ServerUnderTest) -> None:
    full, ample = server.complete(TEXT), server.complete(TEXT, "streaming:4000")
    assert full.choices[0].text == ample.choices[0].text
    assert ample.usage.kv_cache["evicted_tokens"] == 0


# -- bad input ----------------------------------------------------------------------------------------

BAD = [
    ("nope", "kv_policy"),
    ("", "kv_policy"),
    ("streaming:0", "kv_policy.budget"),
    ("streaming:1.01", "kv_policy.budget"),
    ("streaming:many", "kv_policy.budget"),
    ({"name": "streaming", "budget": 3}, "kv_policy.budget"),
    ({"name": "streaming", "budget": True}, "kv_policy.budget"),
    ({"name": "streaming", "colour": "red"}, "kv_policy.colour"),
    ({"name": "snapkv", "window": "32"}, "kv_policy.window"),
    ({"name": "streaming", "when": "never"}, "kv_policy.when"),
    ({"name": "ksa", "budget": 0.5, "window": 4}, "kv_policy.budget"),
    ({"name": "pyramidkv", "budget": 0.5, "granularity": "layer"}, "kv_policy.granularity"),
    ({"name": "ksa", "at": 20}, "kv_policy.at"),
    ({"budget": 0.5}, "kv_policy.name"),
    (7, "kv_policy"),
    ([], "kv_policy"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("value", "param"), BAD)
def test_bad_field(client: openai.OpenAI, value: object, param: str, stream: bool) -> None:
    calls: list[Any] = [
        lambda extra: client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream, extra_body=extra),
        lambda extra: client.completions.create(model=MODEL, prompt=TEXT, stream=stream, extra_body=extra),
        lambda extra: client.responses.create(model=MODEL, input=TEXT, stream=stream, extra_body=extra),
    ]
    for call in calls:
        with pytest.raises(openai.BadRequestError) as caught:
            call({"kv_policy": value})
        assert caught.value.param == param
        body: Any = caught.value.body
        assert set(body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("value", "param"), [(v, p) for v, p in BAD if isinstance(v, str)])
def test_bad_header_and_xargs(server: ServerUnderTest, value: str, param: str) -> None:
    for more in ({"extra_headers": {"X-KV-Policy": value}}, {"extra_body": {"vllm_xargs": {"kv_policy": value}}}):
        with pytest.raises(openai.BadRequestError) as caught:
            server.complete(TEXT, **more)
        assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_cannot_fit_is_refused_unless_compressed(server: ServerUnderTest, stream: bool) -> None:
    before = server.metric("kvserve_policy_rejections_total", reason="too_long")
    prompt = _tokens(LENGTH - 40)
    for policy in (None, "full", "streaming:0.999"):
        with pytest.raises(openai.BadRequestError, match="KV cache holds") as caught:
            list(server.complete(prompt, policy, stream=stream))
        assert caught.value.param == "kv_policy"
    assert server.metric("kvserve_policy_rejections_total", reason="too_long") == before + 3
    if not stream:
        assert _compressed(server.complete(prompt, "streaming:512").usage)["logical_tokens"] == LENGTH - 25


def test_a_prompt_over_the_models_length_is_vllms_own_400(server: ServerUnderTest) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        server.complete(_tokens(LENGTH + 1), "streaming:0.25")


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nope", prompt="x", extra_body=QUARTER)


# -- our own endpoints, metrics -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/kv/policies", "/v1/kv/policies/streaming", "/v1/kv/stats", "/v1/kv/prefixes"])
def test_endpoints_need_the_key(server: ServerUnderTest, path: str) -> None:
    assert httpx.get(server.url + path).status_code == 401
    assert server.http.get(path).status_code == 200


def test_policies_say_whether_this_server_can_run_them(server: ServerUnderTest) -> None:
    cards = {card["name"]: card for card in server.http.get("/v1/kv/policies").json()["data"]}
    assert {"full", "random", "streaming", "snapkv", "scissorhands"} <= set(cards)
    ksa = cards.pop("ksa")  # the flags of this server keep the layers in one group
    assert all(card["supported"] for card in cards.values())
    assert not ksa["supported"]
    assert "--kv-groups 4" in ksa["reason"]


def test_every_policy_answers_over_http(server: ServerUnderTest) -> None:
    """As usage.kv_cache says, what is kept is the budget and what has come since the last round."""
    cards = server.http.get("/v1/kv/policies").json()["data"]
    for card in cards:
        policy = {"name": card["name"], "budget": 100, "slack": 16}
        if not card["budgeted"]:
            continue
        body = {"model": MODEL, "prompt": list(range(10, 310)), "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        answer = server.http.post("/v1/completions", json={**body, "kv_policy": policy})
        assert answer.status_code == 200, answer.text
        used = answer.json()["usage"]["kv_cache"]
        stays = 39 if card["name"] in ("snapkv", "pyramidkv", "chunkkv", "criticalkv", "kvzip") else 0  # generated
        assert used["kept_tokens"] <= 100 + 16 + (300 if card["name"] == "triattention" else stays), used
        assert used["policy"] == card["name"]
        assert (used["merged_tokens"] > 0) == (card["name"] == "elastic-cache")
        assert used.get("granularity") == ("group" if card["name"] in ("prefixkv", "pyramidkv") else None)


def test_metrics_equal_what_was_done(server: ServerUnderTest) -> None:
    names = [f"kvserve_{name}_total" for name in ("requests", "compactions", "tokens_evicted", "blocks_freed")]
    counters = [*names, "kvserve_kept_fraction_count", "kvserve_kept_fraction_sum", "kvserve_compaction_seconds_count"]

    def values() -> dict[str, float]:
        return {name: server.metric(name, policy="knorm", model_name=MODEL) for name in counters}

    before = values()
    outcomes = [_compressed(server.complete(TEXT, f"knorm:{b}").usage, "knorm") for b in (0.25, 200)]
    wait_for(lambda: values()[names[0]] == before[names[0]] + 2)
    change = {name: value - before[name] for name, value in values().items()}
    assert change["kvserve_compactions_total"] == sum(o["compactions"] for o in outcomes)
    assert change["kvserve_tokens_evicted_total"] == pytest.approx(sum(o["evicted_tokens"] for o in outcomes))
    assert change["kvserve_kept_fraction_count"] == 2
    fractions = [o["kept_tokens"] / o["logical_tokens"] for o in outcomes]
    assert change["kvserve_kept_fraction_sum"] == pytest.approx(sum(fractions))
    assert change["kvserve_compaction_seconds_count"] >= 2
    assert change["kvserve_blocks_freed_total"] > 0


def test_rejections_are_counted_once(server: ServerUnderTest) -> None:
    def count() -> float:
        return server.metric("kvserve_policy_rejections_total", reason="unknown_policy")

    before = count()
    for place in ({"policy": "nope"}, {"extra_headers": {"X-KV-Policy": "nope"}}):
        with pytest.raises(openai.BadRequestError):
            server.complete([TEXT, TEXT], **place)
    assert count() == before + 2


def test_stats_and_metrics_agree(server: ServerUnderTest) -> None:
    stats = server.stats()
    assert stats["enabled"]
    assert stats["pool_bytes"] == server.metric("kvserve_kv_pool_bytes") > 0
    for name, totals in stats["policies"].items():
        assert totals["requests"] == server.metric("kvserve_requests_total", policy=name)
    assert server.metric("kvserve_build_info") == 1
    assert server.metric("vllm:num_requests_running") == 0


# -- the server around it -----------------------------------------------------------------------------


def test_request_id_is_echoed(server: ServerUnderTest) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    answer = server.http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert server.http.post("/v1/completions", json=body).headers["x-request-id"]


def test_disconnect_frees_the_blocks(server: ServerUnderTest) -> None:
    for policy in ("streaming:0.25", None):
        stream = server.complete(_tokens(1500), policy, stream=True, max_tokens=6500)  # more than is ever read
        for _ in range(5):
            next(stream)
        wait_for(lambda: server.stats()["resident_bytes"] > 0)
        stream.close()
        wait_for(lambda: server.metric("vllm:num_requests_running") == 0)
        wait_for(lambda: server.stats()["resident_bytes"] == 0)
        assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_four_policies_at_once(server: ServerUnderTest) -> None:
    prompt, policies = _tokens(1500, seed=1), [None, "streaming:0.25", "snapkv:0.25", "scissorhands:0.25"]
    alone = [server.complete(prompt, policy).choices[0].text for policy in policies]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda policy: server.complete(prompt, policy), policies))
    assert answers[0].choices[0].text == alone[0]
    assert not hasattr(answers[0].usage, "kv_cache")
    for policy, answer in zip(policies[1:], answers[1:], strict=True):
        assert policy is not None
        outcome = _compressed(answer.usage, policy.partition(":")[0])
        assert outcome["resident_bytes"] / outcome["full_bytes"] < 0.5


# -- where a chat is compressed -----------------------------------------------------------------------

CHAT: Any = [
    {"role": "system", "content": "you read the log . " * 20},
    {"role": "user", "content": TEXT},
    {"role": "user", "content": "which animal sat ?"},
]
AT: dict[str, Any] = {"name": "keydiff", "budget": 64, "decode": False}
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


def _evicted(usage: Any) -> float:
    evicted: float = usage["kv_cache"]["evicted_tokens"]
    return evicted


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
def test_at_the_last_message(server: ServerUnderTest, path: str) -> None:
    """The budget of 64 is what stays of all that stands before the question, and not of the question."""

    def usage(policy: Any, **more: Any) -> Any:
        size = {"responses": "max_output_tokens"}.get(path, "max_tokens")
        chat = {"input" if path == "responses" else "messages": CHAT}
        body = {"model": MODEL, **chat, size: 4, "kv_policy": policy, "temperature": 0, **more}
        answer = httpx.post(f"{server.url}/v1/{path}", json=body, headers=AUTHORIZED, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]

    whole, last = usage(AT), usage({**AT, "at": "last_message"})
    head = usage({**AT, "at": "system"})
    assert 0 < _evicted(head) < _evicted(last) < _evicted(whole)
    if path == "messages":
        block = {"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral"}}
        question = {"type": "text", "text": CHAT[-1]["content"]}
        marked = usage(AT, messages=[{"role": "user", "content": [block, question]}])
        assert 0 < _evicted(marked) < _evicted(usage(AT, messages=[{"role": "user", "content": [question, block]}]))


def test_words_need_a_chat(server: ServerUnderTest) -> None:
    with pytest.raises(openai.BadRequestError, match=r"kv_policy.at is 'system', which only a chat has .* 1 to 40"):
        server.complete(_tokens(40), {**AT, "at": "system"})
    with pytest.raises(openai.BadRequestError, match=r"kv_policy.at is 'end'; allowed: a token position .* 'system'"):
        server.complete(_tokens(40), {**AT, "at": "end"})

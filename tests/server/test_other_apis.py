"""Policies on /v1/messages, /v1/chat/completions/batch and /inference/v1/generate; a default is for all routes.

One server that compresses by default, used through Anthropic's own client where that fits.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.server.running import FIELDS, KEY, MODEL, ServerUnderTest, serving, wait_for

pytest.importorskip("vllm")

LENGTH = 4096
TEXT = "the cat sat on the mat and the dog ran away . " * 40
MESSAGES: Any = [{"role": "user", "content": TEXT}]
TOKENS = random.Random(0).choices(range(10, 2000), k=500)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    command = ["kvserve", "serve", "mini", "--max-model-len", str(LENGTH), "--enable-scale-out"]
    command += ["--kv-policy", "streaming:0.25", "--kv-resident-tokens", "2048", "--num-gpu-blocks-override", "24"]
    with serving(tmp_path_factory.mktemp("server") / "log", command) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerUnderTest) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, auth_token=KEY, max_retries=0, timeout=60)


def _say(client: anthropic.Anthropic, policy: Any = None, **more: Any) -> Any:
    body = {"temperature": 0, **({} if policy is None else {"kv_policy": policy}), **more.pop("extra_body", {})}
    fields = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "extra_body": body, **more}
    return client.messages.create(**fields)


def _batch(server: ServerUnderTest, **more: Any) -> Any:
    talks = [MESSAGES, [{"role": "user", "content": TEXT + TEXT}]]
    fields = {"model": MODEL, "messages": talks, "max_tokens": 8, "temperature": 0, **more}
    return server.http.post("/v1/chat/completions/batch", json=fields)


def _generate(server: ServerUnderTest, headers: dict[str, str] | None = None, extra: Any = None, **more: Any) -> Any:
    params = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "extra_args": extra}
    body = {"token_ids": TOKENS, "sampling_params": params, **more}
    return server.http.post("/inference/v1/generate", json=body, headers=headers)


def _compressed(outcome: Any, policy: str = "streaming") -> dict[str, Any]:
    assert set(outcome) == FIELDS
    assert outcome["policy"] == policy
    assert 0 < outcome["kept_tokens"] < outcome["logical_tokens"]
    assert outcome["compactions"] >= 1
    found: dict[str, Any] = outcome
    return found


def _events(text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# -- /v1/messages ---------------------------------------------------------------------------------------


def test_message(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, extra_body={"kv_policy": "snapkv:0.5"}
    )
    assert raw.headers["x-kv-policy"] == "snapkv:0.5"
    usage: Any = raw.parse().usage
    outcome = _compressed(usage.kv_cache, "snapkv")
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    assert outcome["logical_tokens"] == usage.input_tokens + cached + usage.output_tokens - 1  # the last is never read


def test_message_stream(client: anthropic.Anthropic) -> None:
    whole = _say(client, "snapkv:0.5")
    events = list(_say(client, "snapkv:0.5", stream=True))
    assert [events[0].type, events[-2].type, events[-1].type] == ["message_start", "message_delta", "message_stop"]
    assert not hasattr(events[0].message.usage, "kv_cache")
    assert _compressed(events[-2].usage.kv_cache, "snapkv") == whole.usage.kv_cache
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == whole.content[0].text


def test_message_helper_of_the_client(client: anthropic.Anthropic) -> None:
    """The client's own accumulator puts a stream together as before."""
    zero = {"temperature": 0}
    with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=8, extra_body=zero) as stream:
        assert "".join(stream.text_stream) == _say(client).content[0].text


def test_message_header_xargs_and_default(client: anthropic.Anthropic) -> None:
    header = {"X-KV-Policy": "knorm:0.25"}
    xargs = {"vllm_xargs": {"kv_policy": "random:0.25"}}
    _compressed(_say(client, extra_headers=header).usage.kv_cache, "knorm")
    _compressed(_say(client, extra_body=xargs).usage.kv_cache, "random")
    _compressed(_say(client, "snapkv:0.25", extra_headers=header).usage.kv_cache, "snapkv")
    assert _compressed(_say(client).usage.kv_cache)["budget"] == 0.25
    assert not hasattr(_say(client, "full").usage, "kv_cache")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("policy", "said"), [("nope", "nope"), ({"name": "streaming", "budget": 3}, "kv_policy.budget")]
)
def test_message_errors_are_anthropics(client: anthropic.Anthropic, policy: Any, said: str, stream: bool) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said) as caught:
        _say(client, policy, stream=stream)
    body: Any = caught.value.body
    assert (body["type"], set(body["error"])) == ("error", {"type", "message"})


@pytest.mark.parametrize("stream", [False, True])
def test_message_that_cannot_fit_is_a_400(server: ServerUnderTest, client: anthropic.Anthropic, stream: bool) -> None:
    before = server.metric("kvserve_policy_rejections_total", reason="too_long")
    long: Any = [{"role": "user", "content": "the cat sat on the mat . " * 350}]
    for policy in ("full", "streaming:0.999"):
        with pytest.raises(anthropic.BadRequestError, match="KV cache holds") as caught:
            list(_say(client, policy, messages=long, stream=stream))
        body: Any = caught.value.body
        assert (body["type"], set(body["error"])) == ("error", {"type", "message"})
    assert server.metric("kvserve_policy_rejections_total", reason="too_long") == before + 2


# -- /v1/chat/completions/batch -----------------------------------------------------------------------------


def test_batch(server: ServerUnderTest) -> None:
    answer = _batch(server, kv_policy="snapkv:0.5")
    usage = answer.json()["usage"]
    assert answer.headers["x-kv-policy"] == "snapkv:0.5"
    assert _compressed(usage["kv_cache"], "snapkv")["logical_tokens"] == usage["total_tokens"] - 2
    assert len(answer.json()["choices"]) == 2


def test_batch_header_xargs_and_default(server: ServerUnderTest) -> None:
    header = {"X-KV-Policy": "knorm:0.25"}
    answer = server.http.post(
        "/v1/chat/completions/batch", json={"model": MODEL, "messages": [MESSAGES], "max_tokens": 4}, headers=header
    )
    _compressed(answer.json()["usage"]["kv_cache"], "knorm")
    xargs = _batch(server, vllm_xargs={"kv_policy": "random:0.25"}).json()
    _compressed(xargs["usage"]["kv_cache"], "random")
    _compressed(_batch(server).json()["usage"]["kv_cache"])
    assert "kv_cache" not in _batch(server, kv_policy="full").json()["usage"]


def test_batch_answers_as_chat_does(server: ServerUnderTest) -> None:
    one = server.client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0, extra_body={"kv_policy": "snapkv:0.5"}
    )
    first = _batch(server, kv_policy="snapkv:0.5").json()["choices"][0]
    assert first["message"]["content"] == one.choices[0].message.content


def test_batch_errors(server: ServerUnderTest) -> None:
    answer = _batch(server, kv_policy="streaming:0")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "kv_policy.budget")


# -- /inference/v1/generate -------------------------------------------------------------------------------


def test_tokens(server: ServerUnderTest) -> None:
    answer = _generate(server, kv_policy="snapkv:0.25")
    usage = answer.json()["usage"]
    assert answer.headers["x-kv-policy"] == "snapkv:0.25"
    assert _compressed(usage["kv_cache"], "snapkv")["logical_tokens"] == usage["total_tokens"] - 1
    assert answer.json()["kv_transfer_params"] is None
    same = server.complete(TOKENS, "snapkv:0.25", max_tokens=8, extra_body={"return_token_ids": True})
    assert answer.json()["choices"][0]["token_ids"] == same.choices[0].token_ids


def test_tokens_stream(server: ServerUnderTest) -> None:
    whole = _generate(server, kv_policy="snapkv:0.25").json()
    stream = _generate(server, kv_policy="snapkv:0.25", stream=True, stream_options={"include_usage": True})
    events = _events(stream.text)
    assert _compressed(events[-1]["usage"]["kv_cache"], "snapkv") == whole["usage"]["kv_cache"]
    streamed = [token for event in events[:-1] for token in event["choices"][0]["token_ids"]]
    assert streamed == whole["choices"][0]["token_ids"]


def test_tokens_header_args_and_default(server: ServerUnderTest) -> None:
    _compressed(_generate(server, {"X-KV-Policy": "knorm:0.25"}).json()["usage"]["kv_cache"], "knorm")
    by_args = _generate(server, extra={"kv_policy": "random:0.25"}).json()
    _compressed(by_args["usage"]["kv_cache"], "random")
    _compressed(_generate(server).json()["usage"]["kv_cache"])
    assert "kv_cache" not in _generate(server, kv_policy="full").json()["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_cannot_fit_are_a_400(server: ServerUnderTest, stream: bool) -> None:
    answer = _generate(server, kv_policy="full", token_ids=TOKENS * 7, stream=stream)
    assert answer.status_code == 400, answer.text
    assert "KV cache holds" in answer.json()["error"]["message"]


# -- what only the server may say ---------------------------------------------------------------------------

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 2}),
    ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}),
    ("/v1/chat/completions/batch", {"model": MODEL, "messages": [MESSAGES], "max_tokens": 2}),
    ("/v1/responses", {"model": MODEL, "input": "x", "max_output_tokens": 16}),
    ("/v1/messages", {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}),
    ("/invocations", {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}),
    ("/inference/v1/generate", {"token_ids": TOKENS, "sampling_params": {"max_tokens": 2}}),
]


@pytest.mark.parametrize("key", ["kv_call", "kv_canary"])
@pytest.mark.parametrize(("path", "body"), WAYS)
def test_no_request_ends_the_server(server: ServerUnderTest, path: str, body: dict[str, Any], key: str) -> None:
    for value in (["x"], "x", 1):
        ours = {"kv_policy": "streaming:0.25", key: value}
        if "sampling_params" in body:
            body["sampling_params"]["extra_args"] = ours
            field = f"sampling_params.extra_args.{key}"
        else:
            body["vllm_xargs"] = ours
            field = f"vllm_xargs.{key}"
        answer = server.http.post(path, json=body)
        assert answer.status_code == 400, answer.text
        assert field in answer.json()["error"]["message"]
    assert server.http.get("/health").status_code == 200


# -- the default everywhere -----------------------------------------------------------------------------------


def test_the_default_reaches_what_reports_nothing(server: ServerUnderTest) -> None:
    def count() -> float:
        return server.metric("kvserve_requests_total", policy="streaming")

    before = count()
    answer = server.http.post("/invocations", json={"model": MODEL, "messages": MESSAGES, "max_tokens": 8})
    assert answer.status_code == 200
    wait_for(lambda: count() == before + 1)


def test_where_the_default_does_nothing_it_is_refused(server: ServerUnderTest) -> None:
    body = {"model": MODEL, "query": "x", "items": ["y"], "label_token_ids": [5, 6]}
    answer = server.http.post("/generative_scoring", json=body)
    assert answer.status_code == 400 and "by default" in answer.json()["error"]["message"]
    body = {"model": MODEL, "prompt": TEXT, "use_beam_search": True, "n": 2, "max_tokens": 4}
    answer = server.http.post("/invocations", json=body)
    assert answer.status_code == 400 and "use_beam_search" in answer.json()["error"]["message"]


# -- text that is not a line's end -------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_marks_in_metadata_do_not_hide_the_usage(server: ServerUnderTest, mark: str) -> None:
    events: list[Any] = list(
        server.client.responses.create(
            model=MODEL, input=TEXT, max_output_tokens=16, stream=True, metadata={"note": f"a{mark}b"}
        )
    )
    assert events[-1].response.metadata == {"note": f"a{mark}b"}
    _compressed(events[-1].response.usage.kv_cache)

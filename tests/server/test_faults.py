"""A plug-in that fails on a real server: HTTP 500 for its own request, and nothing for anybody else."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.engine import raising
from tests.server.running import MODEL, serving, wait_for

PROMPT = "one two three four five six seven eight nine ten " * 30


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With the plug-in of `tests.engine.raising` installed: an entry point, as any plug-in has."""
    path = raising.plugin(tmp_path_factory.mktemp("site"))
    command = ["kvserve", "serve", "mini", "--max-model-len", "2048", "--enable-scale-out"]
    with serving(tmp_path_factory.mktemp("server") / "log", command, {"PYTHONPATH": path}) as running:
        yield running


def asked(where, after=0, **more):
    return {"name": "raising", "budget": 64, "recent": 8, "slack": 16, "where": where, "after": after, **more}


def failing(server, where, after=0, times=10**9, **more):
    with pytest.raises(openai.InternalServerError) as caught:
        server.complete(PROMPT, asked(where, after, times=times, key=f"{where}{after}{more}"), **more)
    return caught.value


@pytest.mark.parametrize("where", ["validator", "check", "salt", "settled", "peak", "due", "select", "consumed"])
def test_the_error_names_policy_and_cause(server, where):
    before = server.metric("kvserve_policy_errors_total", policy="raising")
    right = server.complete(PROMPT, "snapkv:0.5")
    with ThreadPoolExecutor() as pool:
        other = pool.submit(server.complete, PROMPT, "snapkv:0.5")
        error = failing(server, where)
    assert error.status_code == 500
    assert error.param == "kv_policy"
    assert error.body["message"].startswith("kv_policy 'raising' failed while ")
    assert error.body["message"].endswith("is broken")
    assert other.result().choices[0].text == right.choices[0].text
    assert server.http.get("/health").status_code == 200
    wait_for(lambda: server.metric("kvserve_policy_errors_total", policy="raising") == before + 1)
    assert server.stats()["policies"]["raising"]["errors"] == before + 1


def test_a_stream_that_fails_before_its_first_token(server):
    """A plain error, or an error event where the headers were sent by then."""
    policy = asked("own_shares", times=10**9, key="stream start")
    with pytest.raises(openai.APIError, match="kv_policy 'raising' failed while "):
        list(server.complete(PROMPT, policy, stream=True))


def test_a_stream_that_has_begun_ends_with_an_error_event(server):
    policy = asked("due", after=60, key="stream")
    body = {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": 200,
        "stream": True,
        "ignore_eos": True,
        "kv_policy": policy,
    }
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        events = [line for line in response.iter_lines() if line]
    assert len(events) > 10
    assert "kv_policy 'raising' failed while " in events[-2]
    assert events[-1] == "data: [DONE]"


def test_of_several_sequences_one_fails_and_all_are_given_back(server):
    failing(server, "select", times=1, n=3, max_tokens=1500, temperature=1)
    wait_for(lambda: server.stats()["requests_running"] == 0)


def test_a_list_of_policies_does_not_fail_with_one_of_them(server):
    found = {card["name"]: card for card in server.http.get("/v1/kv/policies").json()["data"]}
    assert found["raising"]["supported"] is True


CHAT = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 100}
ROUTES = {
    "/v1/chat/completions": {**CHAT, "max_tokens": 100},
    "/v1/chat/completions/batch": {"messages": [CHAT["messages"]] * 2, "max_tokens": 100},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 100},
    "/v1/messages": CHAT,
    "/inference/v1/generate": {"token_ids": list(range(10, 300)), "sampling_params": {"max_tokens": 100}},
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("where", ["validator", "own_shares", "select"])
def test_other_routes(server, path, where):
    body = {"model": MODEL, "ignore_eos": True, **ROUTES[path], "kv_policy": asked(where, key=f"{path}{where}")}
    answer = server.http.post(path, json=body)
    assert answer.status_code == 500, answer.text
    assert "kv_policy 'raising' failed while " in answer.text
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_streams_of_other_routes(server, path):
    policy = asked("select", key=f"stream {path}")
    body = {"model": MODEL, "stream": True, "ignore_eos": True, **ROUTES[path], "kv_policy": policy}
    with server.http.stream("POST", path, json=body) as response:
        said = response.read().decode()
    assert "kv_policy 'raising' failed while " in said
    assert "completed" not in said
    assert (path == "/v1/messages") or '"param":"kv_policy"' in said

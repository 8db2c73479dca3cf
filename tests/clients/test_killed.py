"""Clients and load generators that are killed: their requests end, their blocks return, the next request is served."""

from tests.clients.load import LONG, PROMPT
from tests.clients.shell import Shell
from tests.clients.test_bench_serve import command
from tests.server.running import MODEL, ServerUnderTest, wait_for

CLIENT = f"""
import sys
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1")
more = {{"ignore_eos": True, **({{"kv_policy": sys.argv[2]}} if len(sys.argv) > 2 else {{}})}}
while True:  # whenever it is killed, it waits for an answer
    for chunk in client.completions.create(
        model={MODEL!r}, prompt={PROMPT!r}, max_tokens={LONG}, stream=True, extra_body=more
    ):
        print(chunk.choices[0].text, flush=True)
"""


def _nothing_is_held(server: ServerUnderTest) -> bool:
    stats = server.stats()
    return stats["running"] == [] and stats["resident_bytes"] == stats["requests_running"] == 0


def _serves(server: ServerUnderTest) -> bool:
    return bool(server.complete(PROMPT, "streaming:0.25", max_tokens=4).choices[0].text)


def test_killed_clients_give_their_blocks_back(server: ServerUnderTest, shell: Shell) -> None:
    (shell.folder / "client.py").write_text(CLIENT)
    policies = ["", "streaming:0.25", "snapkv:0.25"]
    clients = [shell.start(f"exec python client.py {server.url} {policy}", f"client{policy}") for policy in policies]
    wait_for(lambda: all(shell.said(f"client{policy}").count("\n") > 20 for policy in policies), 60)
    wait_for(lambda: {request["policy"] for request in server.stats()["running"]} == {"full", "streaming", "snapkv"})
    for client in clients:
        client.kill()
        client.wait()
    wait_for(lambda: _nothing_is_held(server), 10)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert _serves(server)


def test_a_killed_load_generator(server: ServerUnderTest, shell: Shell) -> None:
    long = command(server.url).replace("--random-output-len 16", f"--random-output-len {LONG}")
    bench = shell.start("exec " + long, "bench")
    wait_for(lambda: server.stats()["requests_running"] > 0, 120)
    bench.kill()
    bench.wait()
    wait_for(lambda: _nothing_is_held(server), 10)
    assert _serves(server)

"""Every metric against a count that is not ours, on a server of two API processes that also traces."""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvserve.policy.registry import installed
from kvserve.stats import SHARES
from server.cli import embedded
from server.metrics.board import REASONS
from tests.server import tracing
from tests.server.running import KEY, MODEL, ServerUnderTest, serving, wait_for
from tests.server.test_metrics import CONTRACT
from tests.server.tracing import ReceivedSpan, Receiver

pytest.importorskip("vllm")

BLOCK = 128  # tokens
BLOCKS = 23  # of the pool, besides the one that vLLM keeps for itself
POLICIES = ["streaming:0.25", "knorm:0.5", "elastic-cache:0.5", "full"]
SEEDS = count(1000)
SHARE = {"streaming": 0.25, "knorm": 0.5}  # of the prompt, compacted once
TRACED = ["policy", "budget", "logical_tokens", "kept_tokens", "evicted_tokens", "merged_tokens", "compactions"]


def block_bytes() -> int:
    """Keys and values of a block's tokens, in float32."""
    config = json.loads((embedded.folder() or Path()).joinpath("config.json").read_text())
    return BLOCK * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 4


def _tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, 2000), k=count)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with tracing.receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes meet; left to itself, vLLM makes one."""
    return tmp_path_factory.mktemp("prometheus")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, folder: Path) -> Iterator[ServerUnderTest]:
    command = ["kvserve", "serve", "mini", "--api-server-count", "2", "--otlp-traces-endpoint", receiver.url]
    command += ["--max-model-len", "4096", "--kv-resident-tokens", "2048", "--kv-policy", "streaming:0.5"]
    command += ["--num-gpu-blocks-override", str(BLOCKS + 1), "--max-num-batched-tokens", "2048"]
    more = {**tracing.ENVIRON, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with serving(tmp_path_factory.mktemp("server") / "log", command, more) as running:
        yield running


# -- what the counters say ----------------------------------------------------------------------------


def _samples(server: ServerUnderTest) -> dict[tuple[str, str], float]:
    """(name, label) -> value of ours, and of vLLM's without labels."""
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    found: Counter[tuple[str, str]] = Counter()
    for sample in (sample for family in families for sample in family.samples):
        label = sample.labels.get("policy") or sample.labels.get("reason") or sample.labels.get("state") or ""
        le = sample.labels.get("le")
        if sample.name.startswith("kvserve_"):
            found[sample.name, f"{label} <= {float(le)}" if le else label] += sample.value
        elif le is None:
            found[sample.name, ""] += sample.value
    return dict(found)


class Change:
    """What the samples have gained since it was made."""

    def __init__(self, server: ServerUnderTest) -> None:
        self._server, self._before = server, _samples(server)

    def of(self, name: str, label: str = "") -> float:
        return _samples(self._server).get((name, label), 0) - self._before.get((name, label), 0)

    def all(self) -> dict[tuple[str, str], float]:
        return {key: value - self._before.get(key, 0) for key, value in _samples(self._server).items()}


def _ask_many(server: ServerUnderTest, lengths: list[int]) -> dict[str, list[Any]]:
    """For each policy the usage of requests with prompts of these lengths; four at once, which fit into the pool."""

    def ask(job: tuple[str, int, int]) -> tuple[str, Any]:
        policy, length, seed = job
        return policy, server.complete(_tokens(length, seed), policy, max_tokens=20).usage

    pairs = [(policy, length) for length in lengths for policy in POLICIES]
    jobs = [(policy, length, next(SEEDS)) for policy, length in pairs]  # blocks that requests share are not freed
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, jobs))
    return {policy.partition(":")[0]: [usage for p, usage in answers if p == policy] for policy in POLICIES}


def test_counters_and_histograms_equal_the_answers(server: ServerUnderTest) -> None:
    change = Change(server)
    lengths = [600, 333, 450, 520, 290]
    answers = _ask_many(server, lengths)
    wait_for(lambda: sum(change.of("kvserve_requests_total", policy) for policy in answers) == 20)
    found = change.all()
    for policy, usages in answers.items():
        caches = [usage.kv_cache for usage in usages if policy != "full"]
        compactions = sum(cache["compactions"] for cache in caches)
        shares = [cache["kept_tokens"] / cache["logical_tokens"] for cache in caches]
        expected = {
            "kvserve_requests_total": 5,
            "kvserve_prompt_tokens_total": sum(lengths),
            "kvserve_generation_tokens_total": 5 * 20,
            "kvserve_compactions_total": compactions,
            "kvserve_compaction_seconds_count": compactions,  # of one worker
            "kvserve_tokens_evicted_total": sum(cache["evicted_tokens"] for cache in caches),
            "kvserve_tokens_merged_total": sum(cache["merged_tokens"] for cache in caches),
            "kvserve_pressure_compactions_total": 0,
            "kvserve_kept_fraction_count": len(caches),
            "kvserve_kept_fraction_sum": sum(shares),
        }
        assert {name: found[name, policy] for name in expected} == pytest.approx(expected), policy
        for edge in SHARES:
            assert found["kvserve_kept_fraction_bucket", f"{policy} <= {edge}"] == sum(s <= edge for s in shares)
        assert (found["kvserve_compaction_seconds_sum", policy] > 0) == (policy != "full")
    assert found["kvserve_tokens_merged_total", "elastic-cache"] > 0
    assert found["kvserve_preemptions_avoided_total", ""] == 0
    for name in ("prompt_tokens_total", "generation_tokens_total"):
        assert found[f"vllm:{name}", ""] == sum(found[f"kvserve_{name}", policy] for policy in answers)


def test_blocks_freed_equal_the_arithmetic_of_block_sizes(server: ServerUnderTest) -> None:
    """A prompt holds its blocks until its end, and then those of what it keeps."""
    change = Change(server)
    lengths = [600, 333, 450]
    answers = _ask_many(server, lengths)
    wait_for(lambda: sum(change.of("kvserve_requests_total", policy) for policy in answers) == 12)
    found = change.all()
    for policy, share in SHARE.items():
        kept = [ceil(n * share) for n in lengths]
        freed = sum(ceil(n / BLOCK) - ceil(k / BLOCK) for n, k in zip(lengths, kept, strict=True))
        assert found["kvserve_blocks_freed_total", policy] == freed > 0
        caches = [usage.kv_cache for usage in answers[policy]]
        assert [cache["kept_tokens"] for cache in caches] == [k + 19 for k in kept]
        assert [cache["full_bytes"] for cache in caches] == [ceil((n + 19) / BLOCK) * block_bytes() for n in lengths]
    assert found["kvserve_blocks_freed_total", "full"] == 0


def test_rejections_by_reason(server: ServerUnderTest) -> None:
    change = Change(server)
    bad: list[tuple[str, Any]] = [
        *[("unknown_policy", "nope")] * 7,
        *[("bad_parameter", "streaming:0")] * 5,
        *[("unsupported", {"name": "pyramidkv", "granularity": "layer"})] * 3,  # needs groups
        *[("too_long", "full")] * 2,
    ]

    def ask(job: tuple[str, Any]) -> None:
        with pytest.raises(openai.BadRequestError):
            server.complete(_tokens(3500 if job[0] == "too_long" else 9, 0), job[1])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, bad))
    expected = Counter(reason for reason, _ in bad)
    assert {reason: change.of("kvserve_policy_rejections_total", reason) for reason in REASONS} == expected
    assert server.stats()["rejections"] == {
        r: server.metric("kvserve_policy_rejections_total", reason=r) for r in REASONS
    }


def test_pool_and_running_requests(server: ServerUnderTest) -> None:
    block, change = block_bytes(), Change(server)
    for policy in ("full", "streaming:256"):
        stream, stats, samples = _while_it_runs(server, policy)
        if policy != "full":  # as soon as they are free, not at the request's end
            assert change.of("kvserve_blocks_freed_total", "streaming") >= ceil(700 / BLOCK) - 256 / BLOCK
        stream.close()
        (running,) = stats["running"]
        assert running["policy"] == policy.partition(":")[0]
        assert running["full_bytes"] == ceil(running["logical_tokens"] / BLOCK) * block
        assert running["resident_bytes"] == ceil(running["kept_tokens"] / BLOCK) * block
        assert (running["resident_bytes"] < running["full_bytes"]) == (policy != "full")
        assert samples["kvserve_kv_bytes", "resident"] == running["resident_bytes"] == stats["resident_bytes"]
        assert samples["kvserve_kv_bytes", "full"] == running["full_bytes"] == stats["full_bytes"]
        assert samples["kvserve_kv_pool_bytes", ""] == BLOCKS * block == stats["pool_bytes"]
        wait_for(lambda: not server.stats()["running"])
    assert server.metric("kvserve_kv_bytes") == 0


def _while_it_runs(server: ServerUnderTest, policy: str) -> tuple[Any, dict[str, Any], dict[tuple[str, str], float]]:
    """A request that is generating its answer, and what is said meanwhile; on a busy machine it may end before.

    With a policy, when its first compaction has been reported: that is some steps after the first token.
    """
    for _ in range(5):
        change = Change(server)
        stream = server.complete(_tokens(700, 1), policy, max_tokens=1300, stream=True)
        next(stream)
        name = policy.partition(":")[0]
        wait_for(lambda: _is_settled(server.stats()) or change.of("kvserve_requests_total", name) == 1)  # noqa: B023
        with _held_still(server):
            stats, samples = _at_one_moment(server)
        if _is_settled(stats):
            return stream, stats, samples
        stream.close()
        wait_for(lambda: not server.stats()["running"])
    raise AssertionError("no request was seen while it generated")


def _is_settled(stats: dict[str, Any]) -> bool:
    """Whether one request runs, generates, and is compressed if it is to be."""
    if len(stats["running"]) != 1:
        return False
    (request,) = stats["running"]
    compressed = request["kept_tokens"] < request["logical_tokens"]
    return request["stage"] == "decode" and compressed == (request["policy"] != "full")


@contextmanager
def _held_still(server: ServerUnderTest) -> Iterator[None]:
    """The engine stops between two steps or in one; else it may be faster than two scrapes."""
    below = psutil.Process(server.process.pid).children(recursive=True)
    (engine,) = [process for process in below if "EngineCore" in " ".join(process.cmdline())]
    engine.suspend()
    try:
        yield
    finally:
        engine.resume()


def _at_one_moment(server: ServerUnderTest) -> tuple[dict[str, Any], dict[tuple[str, str], float]]:
    """Stats and metrics of the same snapshot."""
    while True:
        before, samples, after = server.stats(), _samples(server), server.stats()
        if before == after:
            return before, samples


def test_pressure(server: ServerUnderTest) -> None:
    """Two requests that do not fit together: without a policy one is preempted, with one compactions make the room."""
    preempted, _ = _overfill(server, "full")
    assert preempted.of("vllm:num_preemptions_total") >= 1
    assert preempted.of("kvserve_preemptions_avoided_total") == 0
    avoided, usage = _overfill(server, {"name": "streaming", "budget": 512, "when": "pressure"})
    assert avoided.of("vllm:num_preemptions_total") == 0
    assert usage.kv_cache["compactions"] >= 1
    for name in ("compactions", "pressure_compactions"):
        assert avoided.of(f"kvserve_{name}_total", "streaming") == usage.kv_cache["compactions"]
    assert avoided.of("kvserve_preemptions_avoided_total") == usage.kv_cache["compactions"]


def _overfill(server: ServerUnderTest, policy: Any) -> tuple[Change, Any]:
    """A request that grows from 3 to 16 blocks, and beside it one of `policy` that grows from 8 to 16; its usage.

    On a busy machine the first may be over before the second is let in: then again.
    """
    for _ in range(5):
        change = Change(server)
        first = server.complete(_tokens(300, next(SEEDS)), "full", max_tokens=1700, stream=True)
        second = server.complete(
            _tokens(1000, next(SEEDS)), policy, max_tokens=1000, stream=True, stream_options={"include_usage": True}
        )
        next(first), next(second)
        wait_for(lambda: len(server.stats()["running"]) != 1)
        together = len(server.stats()["running"]) == 2
        *_, last = second
        assert last.usage.completion_tokens == 1000
        for _ in first:
            pass
        wait_for(lambda: sum(change.of("kvserve_requests_total", name) for name in ("full", "streaming")) == 2)  # noqa: B023
        if together:
            return change, last.usage
    raise AssertionError("the two requests never ran together")


def test_a_shared_prefix(server: ServerUnderTest) -> None:
    """Made, taken twice, listed, dropped: whichever API process is asked."""
    change, text = Change(server), _tokens(500, next(SEEDS))
    policy = {"name": "keydiff", "budget": 0.5, "at": 400, "share": True}

    def shared(end: int) -> int:
        return int(server.complete(text[:400] + _tokens(60, end), policy).usage.kv_cache["shared_tokens"])

    assert [shared(1), shared(2), shared(3)] == [0, 400, 400]
    wait_for(lambda: change.of("kvserve_prefix_hits_total", "keydiff") == 2)
    assert change.of("kvserve_prefix_tokens_total", "keydiff") == 800
    [held] = server.http.get("/v1/kv/prefixes").json()["data"]
    assert (held["logical_tokens"], held["kept_tokens"], held["hits"]) == (400, 200, 2)
    assert held["bytes"] == 2 * block_bytes() == server.metric("kvserve_prefix_bytes")
    path = f"/v1/kv/prefixes/{held['id']}"
    assert server.http.delete(path).json() == {"id": held["id"], "deleted": True}
    assert server.http.delete(path).status_code == 404
    assert shared(4) == 0


# -- labels -------------------------------------------------------------------------------------------


def test_labels_are_few_and_never_the_clients(server: ServerUnderTest) -> None:
    for name in ("policy-of-mine", "x" * 200, 'streaming"} 1\nkvserve_requests_total{policy="mine'):
        with pytest.raises(openai.BadRequestError):
            server.complete("x", {"name": name})
    for name in ("elastic_cache:0.5", "Elastic-Cache:0.5"):  # other spellings of an installed one
        assert server.complete(_tokens(200, 0), name).usage.kv_cache["policy"] == "elastic-cache"
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    ours = [sample for family in families for sample in family.samples if sample.name.startswith("kvserve_")]
    assert {label for sample in ours for label in sample.labels} == {
        *("model_name", "policy", "state", "reason", "version", "vllm", "le")
    }
    assert {s.labels["policy"] for s in ours if "policy" in s.labels} <= set(installed())
    assert {s.labels["reason"] for s in ours if "reason" in s.labels} == set(REASONS)
    assert {s.labels["state"] for s in ours if "state" in s.labels} == {"resident", "full"}
    assert {s.labels["model_name"] for s in ours if "model_name" in s.labels} == {MODEL}


def test_all_metrics_are_there(server: ServerUnderTest) -> None:
    text = server.http.get("/metrics").text
    found = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE kvserve_"))
    assert found == CONTRACT
    assert server.metric("kvserve_build_info") == 1


# -- several processes --------------------------------------------------------------------------------


def test_every_process_gives_the_same_answer(server: ServerUnderTest, folder: Path) -> None:
    """On each connection first a refusal, which tells whose it is."""
    before, by_process = server.metric("kvserve_policy_rejections_total"), Counter[str]()
    headers = {"Authorization": f"Bearer {KEY}"}
    while len(by_process) < 2:
        counts = _refusals(folder)
        with httpx.Client(base_url=server.url, headers=headers, timeout=60) as http:
            body = {"model": MODEL, "prompt": "x", "kv_policy": "nope"}
            assert http.post("/v1/completions", json=body).status_code == 400
            (process,) = [name for name, count in _refusals(folder).items() if count > counts.get(name, 0)]
            by_process[process] += 1
            here = ServerUnderTest(server.url, server.process, folder)
            here.http = http
            assert here.metric("kvserve_policy_rejections_total") == before + by_process.total()
            assert sum(here.stats()["rejections"].values()) == before + by_process.total()
            assert here.metric("kvserve_requests_total") == server.metric("kvserve_requests_total") > 0
            assert here.stats()["policies"] == server.stats()["policies"]
        assert by_process.total() < 200, "all connections went to one process"


def _refusals(folder: Path) -> dict[str, int]:
    """By file of an API process."""
    found = {path.name: json.loads(path.read_text()) for path in folder.glob("kvserve-*.json")}
    return {name: sum(known["rejections"].values()) for name, known in found.items()}


# -- spans --------------------------------------------------------------------------------------------


def _traced(receiver: Receiver, count: int, ask: Any) -> tuple[Any, list[ReceivedSpan]]:
    """What `ask` returns when given the header of a trace of its own, and the spans of requests in that trace."""
    trace = f"{random.getrandbits(128):032x}"
    answer = ask({"traceparent": f"00-{trace}-{1:016x}-01"})
    wait_for(lambda: len(receiver.of(trace)) == count)
    assert {span.name for span in receiver.of(trace)} == {"llm_request"}
    return answer, receiver.of(trace)


def _ours(span: ReceivedSpan) -> dict[str, Any]:
    return {name: value for name, value in span.attributes.items() if name.startswith("kvserve.")}


def _expected(cache: dict[str, Any]) -> dict[str, Any]:
    return {f"kvserve.{name}": cache[name] for name in TRACED}


@pytest.mark.parametrize("policy", ["streaming:0.25", "elastic-cache:100"])
def test_a_span_carries_what_the_answer_says(server: ServerUnderTest, receiver: Receiver, policy: str) -> None:
    answer, (span,) = _traced(
        receiver, 1, lambda headers: server.complete(_tokens(400, 3), policy, extra_headers=headers)
    )
    assert _ours(span) == _expected(answer.usage.kv_cache)
    assert span.attributes["gen_ai.usage.prompt_tokens"] == 400


def test_the_span_of_a_stream_and_of_a_stop_string(server: ServerUnderTest, receiver: Receiver) -> None:
    text = server.complete(_tokens(400, 3), "knorm:0.25").choices[0].text
    options = {"include_usage": True}
    chunks, (span,) = _traced(
        receiver,
        1,
        lambda headers: list(
            server.complete(
                _tokens(400, 3),
                "knorm:0.25",
                stop=[text[5:9]],
                stream=True,
                stream_options=options,
                extra_headers=headers,
            )
        ),
    )
    assert _ours(span) == _expected(chunks[-1].usage.kv_cache)


def test_each_sequence_has_a_span(server: ServerUnderTest, receiver: Receiver) -> None:
    answer, spans = _traced(
        receiver,
        3,
        lambda headers: server.complete(
            _tokens(400, 4), "knorm:0.25", n=3, temperature=1, max_tokens=30, extra_headers=headers
        ),
    )
    for name in ("logical_tokens", "kept_tokens", "evicted_tokens", "compactions"):
        assert sum(span.attributes[f"kvserve.{name}"] for span in spans) == answer.usage.kv_cache[name]


def test_spans_without_compression_are_vllms_own(server: ServerUnderTest, receiver: Receiver) -> None:
    _, (span,) = _traced(receiver, 1, lambda headers: server.complete(_tokens(50, 5), "full", extra_headers=headers))
    assert _ours(span) == {}
    assert span.attributes["gen_ai.usage.completion_tokens"] == 16


def test_the_default_policy_is_on_spans_of_routes_without_usage_of_ours(
    server: ServerUnderTest, receiver: Receiver
) -> None:
    text = "the cat sat on the mat and the dog ran away . " * 30
    body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": text}]}
    answer, (span,) = _traced(receiver, 1, lambda headers: server.http.post("/v1/messages", json=body, headers=headers))
    assert answer.status_code == 200
    ours = _ours(span)
    assert (ours["kvserve.policy"], ours["kvserve.budget"], ours["kvserve.compactions"]) == ("streaming", 0.5, 1)
    assert ours["kvserve.kept_tokens"] + ours["kvserve.evicted_tokens"] == ours["kvserve.logical_tokens"] > 200
    assert "kv_transfer_params" not in answer.text


def test_nothing_is_left_behind(server: ServerUnderTest) -> None:
    wait_for(lambda: server.stats()["requests_running"] == 0)
    time.sleep(0.3)
    stats = server.stats()
    assert (stats["running"], stats["resident_bytes"], stats["requests_waiting"]) == ([], 0, 0)

"""Same tokens, same log-probabilities and the same keep sets as an independent float32 engine."""

from functools import lru_cache

import pytest
import torch

from kvserve.evidence import calibration
from tests.engine import harness, reference
from tests.engine.harness import MINI


@lru_cache
def mini():
    return reference.load(str(MINI))


@lru_cache
def statistics():
    """TriAttention's statistics of queries, from the reference's own pass over a text of random tokens."""
    return reference.query_statistics(reference.load(str(MINI)), harness.tokens(1024, seed=99))


def trig(mode, **fields):
    """A case of TriAttention whose reference is made when it is needed."""
    given = {"slack": 32, "mode": mode, **fields}
    return "triattention", given, lambda: reference.triattention(stats=statistics(), **given)


CASES = [
    ("streaming", {"budget": 128}, lambda: reference.streaming(128)),
    ("knorm", {"budget": 100}, lambda: reference.knorm(100)),
    ("snapkv", {"budget": 96}, lambda: reference.snapkv(96)),
    ("snapkv", {"budget": 200, "window": 16, "kernel": 5}, lambda: reference.snapkv(200, 16, 5)),
    ("keydiff", {"budget": 100}, lambda: reference.keydiff(100)),
    ("tova", {"budget": 100}, lambda: reference.tova(100)),
    ("scissorhands", {"budget": 64}, lambda: reference.scissorhands(64)),
    ("scissorhands", {"budget": 200, "history": 40, "drop": 0.1}, lambda: reference.scissorhands(200, 40, 10, 0.1)),
    (
        "scissorhands",
        {"budget": 64, "variant": "cold-compress", "history": 100, "sinks": 4},
        lambda: reference.cold_compress(64, 100),
    ),
    (
        "scissorhands",
        {"budget": 64, "variant": "cold-compress", "history": 40, "sinks": 4, "measure": "bit"},
        lambda: reference.cold_compress(64, 40, votes="bits"),
    ),
    ("scissorhands", {"budget": 64, "variant": "official", "history": 100}, lambda: reference.official(64)),
    ("h2o", {"budget": 102}, lambda: reference.h2o(102)),
    ("h2o", {"budget": 101, "slack": 32, "recent_share": 0.2}, lambda: reference.h2o(101, 32, 0.2)),
    ("rkv", {"budget": 100}, lambda: reference.rkv(100)),
    ("rkv", {"budget": 60, "slack": 32, "window": 4, "mix": 0.5}, lambda: reference.rkv(60, 32, 4, mix=0.5)),
    ("expected-attention", {"budget": 100}, lambda: reference.expected_attention(100, sinks_compete=False)),
    (
        "expected-attention",
        {"budget": 90, "slack": 64, "horizon": 64, "epsilon": 0.001},
        lambda: reference.expected_attention(90, 64, horizon=64, epsilon=0.001, sinks_compete=False),
    ),
    ("elastic-cache", {"budget": 100}, lambda: reference.elastic(100)),
    ("elastic-cache", {"budget": 0.2, "slack": 32}, lambda: reference.elastic(0.2, 32)),
    (
        "elastic-cache",
        {"budget": 20, "slack": 32, "merge": "values"},
        lambda: reference.elastic(20, 32, merge="values"),
    ),
    ("elastic-cache", {"budget": 64, "merge": "none"}, lambda: reference.elastic(64, merge="none")),
    ("elastic-cache", {"budget": 90, "distance": 7}, lambda: reference.elastic(90, distance=7)),
    ("chunkkv", {"budget": 100}, lambda: reference.chunkkv(100)),
    (
        "chunkkv",
        {"budget": 95, "chunk": 7, "of": {"name": "snapkv", "kernel": 1, "window": 16}},
        lambda: reference.chunkkv(95, 7, 16),
    ),
    ("criticalkv", {"budget": 100}, lambda: reference.criticalkv(mini(), 100)),
    ("lagkv", {"budget": 120, "lag": 64}, lambda: reference.lagkv(120, 64)),
    ("lagkv", {"budget": 100, "lag": 32, "slack": 32, "sinks": 4}, lambda: reference.lagkv(100, 32, 4, slack=32)),
    ("kvzip", {"budget": 100}, lambda: reference.kvzip(mini(), MINI, lambda n: harness.tokens(n, seed=7), 100)),
    trig("per_head", budget=40),
    trig("per_layer_per_head", budget=50),
    trig("union", budget=40),
    trig("per_head", budget=100, protect_prompt=False),
    trig("per_layer_per_head", budget=100, protect_prompt=False, recent=16),
    trig("union", budget=100, protect_prompt=False),
]
UNEVEN = [
    ("prefixkv", {"budget": 100}, lambda: reference.prefixkv(100)),
    ("prefixkv", {"budget": 0.3, "slack": 32}, lambda: reference.prefixkv(0.3, 32)),
    ("prefixkv", {"budget": 31, "slack": 32, "distance": 4}, lambda: reference.prefixkv(31, 32, distance=4)),
]
LENGTH = 140


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """A calibration file with the statistics that the reference uses."""
    path = tmp_path_factory.mktemp("calibration") / "queries.safetensors"
    mean, moduli = (torch.stack(parts) for parts in zip(*statistics(), strict=True))
    tensors = {"q_real": mean.real.float(), "q_imag": mean.imag.float(), "q_abs": moduli.float()}
    calibration.save(path, tensors, model.config, {"model": "mini"})
    return str(path)


@pytest.fixture(scope="module", params=[512, 160], ids=["chunk512", "chunk160"])
def llm(request, file):
    engine = harness.start(max_num_batched_tokens=request.param, max_num_seqs=16, options={"calibration": file})
    yield engine
    harness.stop(engine)


@pytest.fixture(scope="module", params=[512, 160], ids=["chunk512", "chunk160"])
def layered(request):
    """An engine whose layers have block tables of their own."""
    options = {"groups": 4}
    engine = harness.start(blocks=4 * 256, max_num_batched_tokens=request.param, max_num_seqs=16, options=options)
    yield engine
    harness.stop(engine)


@pytest.fixture(scope="module")
def model():
    return reference.load(str(MINI))


@pytest.fixture(scope="module")
def expected(model):
    """Runs of the reference, each made once."""
    made = {}

    def get(case, prompt):
        key = (case[0], str(case[1]), len(prompt))
        if key not in made:
            made[key] = reference.run(model, prompt, LENGTH, case[2]())
        return made[key]

    return get


def same(engine, expected, case, size):
    """The engine says and keeps what the reference does; returns what the reference kept."""
    name, fields, _ = case
    prompt = harness.tokens(size, seed=7)
    harness.selections(engine)
    [output] = harness.generate(engine, [prompt], [{"name": name, **fields}], LENGTH)
    tokens, logps = harness.said(output)
    ref_tokens, ref_logps, rounds = expected(case, prompt)

    chosen = harness.selections(engine)
    found = {(s.logical, s.layer, h): row.tolist() for s in chosen for h, row in enumerate(s.positions)}
    wanted = {(logical, layer, h): kept for logical, keep in rounds for (layer, h), kept in keep.items()}
    assert rounds, "the case does not compress"
    assert found.keys() == wanted.keys()
    assert found == wanted
    assert tokens == ref_tokens
    assert max(abs(a - b) for a, b in zip(logps, ref_logps, strict=True)) < 1e-4
    return rounds


@pytest.mark.parametrize("size", [300, pytest.param(700, marks=pytest.mark.slow)])  # 300 are two steps of 160
@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{i}-{CASES[i][0]}-{CASES[i][1]['budget']}")
def test_same_as_reference(llm, expected, index, size):
    same(llm, expected, CASES[index], size)


@pytest.mark.parametrize("size", [300, 700])
@pytest.mark.parametrize("index", range(len(UNEVEN)), ids=lambda i: f"{UNEVEN[i][0]}-{UNEVEN[i][1]['budget']}")
def test_uneven_layers_same_as_reference(layered, expected, index, size):
    rounds = same(layered, expected, UNEVEN[index], size)
    assert len({len(kept) for kept in rounds[0][1].values()}) > 1, "the layers are even"


def test_uncompressed_same_as_reference(llm, model):
    """The two engines agree before anything is dropped, or the tests above say nothing."""
    prompt = harness.tokens(300, seed=7)
    [output] = harness.generate(llm, [prompt], [None], 60)
    tokens, logps, _ = reference.run(model, prompt, 60, lambda *_: None)
    assert harness.said(output)[0] == tokens
    assert max(abs(a - b) for a, b in zip(harness.said(output)[1], logps, strict=True)) < 1e-4

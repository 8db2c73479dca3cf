"""Same tokens, same log-probabilities and the same keep sets as an independent float32 engine."""

import pytest

from tests.engine import harness, reference
from tests.engine.harness import MINI

CASES = [
    ("streaming", {"budget": 128}, lambda: reference.streaming(128)),
    ("knorm", {"budget": 100}, lambda: reference.knorm(100)),
    ("snapkv", {"budget": 96}, lambda: reference.snapkv(96)),
    ("snapkv", {"budget": 200, "window": 16, "kernel": 5}, lambda: reference.snapkv(200, 16, 5)),
    ("keydiff", {"budget": 100}, lambda: reference.keydiff(100)),
    ("tova", {"budget": 100}, lambda: reference.tova(100)),
    ("scissorhands", {"budget": 64}, lambda: reference.scissorhands(64)),
    ("scissorhands", {"budget": 200, "history": 40, "drop": 0.1}, lambda: reference.scissorhands(200, 40, 10, 0.1)),
]
LENGTH = 140


@pytest.fixture(scope="module", params=[512, 160], ids=["chunk512", "chunk160"])
def llm(request):
    engine = harness.start(max_num_batched_tokens=request.param, max_num_seqs=16)
    yield engine
    harness.stop(engine)


@pytest.fixture(scope="module")
def model():
    return reference.load(str(MINI))


@pytest.fixture(scope="module")
def expected(model):
    """Runs of the reference, each made once."""
    made = {}

    def get(index, prompt):
        key = (index, len(prompt))
        if key not in made:
            made[key] = reference.run(model, prompt, LENGTH, CASES[index][2]())
        return made[key]

    return get


@pytest.mark.parametrize("size", [300, 700])
@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i][0]}-{CASES[i][1]['budget']}")
def test_same_as_reference(llm, expected, index, size):
    name, fields, _ = CASES[index]
    prompt = harness.tokens(size, seed=7)
    harness.selections(llm)
    [output] = harness.generate(llm, [prompt], [{"name": name, **fields}], LENGTH)
    tokens, logps = harness.said(output)
    ref_tokens, ref_logps, rounds = expected(index, prompt)

    found = {
        (s.logical, s.layer, h): row.tolist() for s in harness.selections(llm) for h, row in enumerate(s.positions)
    }
    wanted = {(logical, layer, h): kept for logical, keep in rounds for (layer, h), kept in keep.items()}
    assert rounds, "the case does not compress"
    assert found.keys() == wanted.keys()
    assert found == wanted
    assert tokens == ref_tokens
    assert max(abs(a - b) for a, b in zip(logps, ref_logps, strict=True)) < 1e-4


def test_uncompressed_same_as_reference(llm, model):
    """The two engines agree before anything is dropped, or the tests above say nothing."""
    prompt = harness.tokens(300, seed=7)
    [output] = harness.generate(llm, [prompt], [None], 60)
    tokens, logps, _ = reference.run(model, prompt, 60, lambda *_: None)
    assert harness.said(output)[0] == tokens
    assert max(abs(a - b) for a, b in zip(harness.said(output)[1], logps, strict=True)) < 1e-4

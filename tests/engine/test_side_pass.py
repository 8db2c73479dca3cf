"""What slots get while the model repeats the prompt, against stock transformers; and that the cache is left alone."""

import pytest
import torch

from kvserve.evidence import repeat
from kvserve.policy import LayerView, ScoringPolicy, SidePass, registry
from models import MINI
from tests.engine import harness, reference

PROMPT = harness.tokens(300, seed=5)
SEEN: list[dict[int, torch.Tensor]] = []


class Repeating(ScoringPolicy):
    """Keeps what was looked at as the prompt was repeated; notes what it was shown."""

    name = "repeating"
    reads = (SidePass(),)

    def scores(self, view: LayerView) -> torch.Tensor:
        if view.layer == 0:
            SEEN.append({})
        SEEN[-1][view.layer] = view.repeated.clone()
        return view.repeated


@pytest.fixture(scope="module")
def llm():
    before = dict(registry.installed())
    registry.installed()["repeating"] = Repeating
    engine = harness.start()
    yield engine
    harness.stop(engine)
    registry.installed().clear()
    registry.installed().update(before)


@pytest.mark.parametrize("chunk", [2048, 128])
def test_the_most_attention_of_a_repetition(llm, monkeypatch, chunk):
    monkeypatch.setattr(repeat, "CHUNK", chunk)
    SEEN.clear()
    [output] = harness.generate(llm, [PROMPT], ["repeating:0.5"], 5)
    assert harness.outcome(output)["compactions"] == 1
    found = torch.stack([SEEN[0][layer] for layer in sorted(SEEN[0])])
    torch.testing.assert_close(
        found, reference.repetition(reference.load(str(MINI)), MINI, tuple(PROMPT), chunk), atol=2e-4, rtol=2e-3
    )


def test_nothing_enters_the_cache_and_neighbours_are_left_alone(llm):
    alone = harness.generate(llm, [PROMPT], [None], 40)[0].outputs[0].token_ids
    beside = harness.generate(llm, [PROMPT, PROMPT], [None, {"name": "repeating", "budget": 299}], 40)
    assert list(beside[0].outputs[0].token_ids) == list(alone)
    assert harness.outcome(beside[1])["logical_tokens"] == len(PROMPT) + 39


def test_while_generating_what_was_repeated_stays_with_its_slots(llm):
    SEEN.clear()
    [output] = harness.generate(llm, [PROMPT], [{"name": "repeating", "budget": 100, "slack": 32}], 150)
    assert harness.outcome(output)["compactions"] > 2
    first, last = SEEN[0][0], SEEN[-1][0]
    assert last.shape[1] > 100 and (last[:, 101:] == 0).all()  # generated: not repeated
    known = [set(row.tolist()) for row in first]
    assert all(set(row[:50].tolist()) <= known[head] | {0.0} for head, row in enumerate(last))


def test_no_room_to_repeat_is_said(llm):
    long = harness.tokens(4080, seed=6)
    output = harness.generate(llm, [long, PROMPT], ["repeating:0.5", None], 5)
    assert output[0].outputs[0].finish_reason == "error"
    assert len(output[1].outputs[0].token_ids) == 5

"""When text gives way to summaries, to how many entries, and which slots they take."""

from itertools import product

import pytest
import torch

from kvserve.policy import EVERYTHING, Facts, LayerView, Moment, PolicyError, Summaries, request
from kvserve.policy.admission import fitting
from tests.engine.reference.summaries import expected_entries

CHUNK, WINDOW = 8, 4
HYBRID = Summaries(CHUNK, WINDOW, ("summary", "full", "summary", "summary"))
FACTS = Facts(
    num_layers=4, groups=4, block_size=32, pool_tokens=1024, max_model_len=8192, chunk=256, summaries=HYBRID
)  # fmt: skip


def ksa(facts=FACTS, prompt=0, **fields):
    policy = request.parse({"name": "ksa", **fields})
    policy.check(facts)
    return policy.settled(facts).for_prompt(prompt)


def test_entries_are_the_papers():
    for window in (None, 1, 9):
        policy = ksa(window=window)
        for tokens in range(400):
            assert policy.entries(tokens) == expected_entries(tokens, window or WINDOW)


def test_a_chunk_goes_when_it_has_left_the_window():
    policy = ksa()
    acts = {n: policy.due(Moment(n, n, "decode")) for n in range(64) if policy.due(Moment(n, n, "decode"))}
    assert acts == {40: 33, 48: 34, 56: 35}  # five chunks: the first of them is seen as a summary from now on
    assert policy.due(Moment(39, 39, "prefilled")) is None
    assert policy.due(Moment(45, 45, "prefilled")) == 38
    assert policy.shares(38, 4, 45) == [38, EVERYTHING, 38, 38]


def test_it_is_told_about_its_server_before_it_acts():
    with pytest.raises(RuntimeError, match="has not been told about its server"):
        request.parse("ksa").due(Moment(100, 100, "decode"))


@pytest.mark.parametrize(
    ("layers", "groups", "allowed"),
    [
        (("summary", "full", "summary", "summary"), 1, "--kv-groups 4"),
        (("summary", "full", "summary", "summary"), 2, "--kv-groups 4"),
        (("summary", "full", "summary", "full"), 1, "--kv-groups 2 or 4"),
        (("summary", "summary", "summary", "summary"), 1, None),
        (("summary", "full", "summary", "full"), 2, None),
    ],
)
def test_layers_that_keep_all_need_groups_of_their_own(layers, groups, allowed):
    facts = FACTS._replace(summaries=Summaries(CHUNK, WINDOW, layers), groups=groups)
    if allowed is None:
        ksa(facts)
        return
    with pytest.raises(PolicyError, match=allowed) as error:
        ksa(facts)
    assert error.value.reason == "unsupported"


def test_a_model_that_was_taught_none():
    with pytest.raises(PolicyError, match="needs a model with summary parameters"):
        ksa(FACTS._replace(summaries=None))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"budget": 0.0}, "budget"), ({"budget": 0.5, "window": 4}, "budget"), ({"at": 3}, "at"),
        ({"slack": 64}, "slack"), ({"when": "pressure"}, "when"),
        ({"decode": False}, "decode"), ({"window": 0}, "window"), ({"chunk": 4}, "chunk"),
    ],
)  # fmt: skip
def test_what_is_not_a_choice(fields, param):
    with pytest.raises(PolicyError) as error:
        request.parse({"name": "ksa", **fields})
    assert error.value.param == f"kv_policy.{param}"


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.5, 0.77, 1.0, 1, 100, 300, 5000])
def test_a_budget_chooses_the_nearest_window(budget):
    for case in product((HYBRID.layers, ("summary",) * 4), (True, False), (1, 37, 400, 2000)):
        chooses_the_nearest_window(budget, *case)


def chooses_the_nearest_window(budget, layers, summaries, prompt):
    case = f"layers {layers}, summaries {summaries}, prompt of {prompt}"
    facts = FACTS._replace(summaries=Summaries(CHUNK, WINDOW, layers))
    wanted = budget * prompt if isinstance(budget, float) else min(budget, prompt)

    def miss(window):
        entries = (
            expected_entries(prompt, window, CHUNK) if summaries else prompt - CHUNK * max(0, prompt // CHUNK - window)
        )
        return abs((layers.count("summary") * entries + layers.count("full") * prompt) / 4 - wanted)

    policy = ksa(facts, prompt, budget=budget, summaries=summaries)
    nearest = min(map(miss, range(1, prompt // CHUNK + 2)))
    assert miss(policy.text_window) <= nearest + 1, case  # a budget is a whole number of tokens
    shares = ksa(facts, window=policy.text_window, summaries=summaries)
    assert policy.salt == shares.salt, case  # they share prefixes


def test_a_number_beyond_the_prompt_is_room_for_text():
    assert ksa(prompt=100, budget=800).text_window == 100


def test_admission_counts_the_layers_that_keep_all():
    """On the mean of a layer: three quarters of it an eighth of the text, the rest all."""
    assert fitting(ksa(), 900, 1900, FACTS) == 1900
    assert fitting(request.parse("full"), 900, 1900, FACTS) == 124
    with pytest.raises(PolicyError, match="needs room for"):
        fitting(ksa(), 3500, 100, FACTS)
    assert fitting(ksa(), 700, 4000, FACTS) < 4000


def test_summaries_stand_where_their_chunks_ended():
    # four summaries, then the text from position 32 on
    positions = torch.cat([torch.arange(7, 32, 8), torch.arange(32, 93)]).expand(2, -1)
    made = torch.full((2, 3, 3), -1.0), torch.full((2, 3, 3), -2.0)
    asked = []
    view = LayerView(
        layer=0, num_layers=4, logical=93, since=64, positions=positions,
        load=lambda which: pytest.fail("the whole cache is read for a few slots"),
        summaries=lambda first, last: asked.append((first, last)) or made,
    )  # fmt: skip
    choice = ksa().select(view, ksa().entries(93))
    assert asked == [(4, 7)]
    assert choice.merged == 21
    assert positions.gather(1, choice.slots)[0].tolist() == [*range(7, 56, 8), *range(56, 93)]
    assert (choice.first, choice.keys, choice.values) == (4, *made)

"""What is sent in each protocol is what its text says, for every installed policy."""

import pytest

from evals.protocols import PROTOCOLS, SLACK, EvalSizes, Unsuitable, kv_policy, newest
from kvserve.policy import Moment, registry, request

NAMES = [name for name, cls in registry.installed().items() if cls.compresses and cls.budgeted]
SIZES = EvalSizes(prompt=400, context=385)


def policy(name, protocol, budget, **more):
    known = registry.get(name).model_json_schema()["properties"]
    return request.parse(kv_policy(protocol, {"name": name, **more}, known, budget, SIZES, 3))


@pytest.mark.parametrize("name", NAMES)
def test_inside(name):
    made = policy(name, "inside", 0.25)
    assert made.due(Moment(400, 400, "prefilled", 400)) == 100
    assert (made.at, made.decode) == (None, False)


@pytest.mark.parametrize("name", NAMES)
def test_after(name):
    made = policy(name, "after", 0.2)
    assert made.due(Moment(385, 385, "prefilled", 385)) == 77
    assert (made.at, made.decode) == (385, False)


@pytest.mark.parametrize("name", NAMES)
def test_decode_keeps_the_prompt(name):
    made = policy(name, "decode", 64)
    assert made.due(Moment(400, 400, "prefilled", 400)) is None
    assert made.target(600, 400) == 464
    assert getattr(made, "protect_prompt", False) or getattr(made, "of", made).sinks == 400


def test_what_is_a_share_of_the_budget_is_one_of_what_is_beside_the_prompt():
    assert policy("h2o", "decode", 64).recent_share * 464 == pytest.approx(32)
    assert policy("scissorhands", "decode", 64).due(Moment(500, 465, "decode", 400)) == 465 - 32


@pytest.mark.parametrize("name", NAMES)
def test_decode_open_protects_nothing(name):
    made = policy(name, "decode-open", 64)
    assert made.due(Moment(400, 400, "prefilled", 400)) is None
    assert made.target(600, 400) == 464
    assert not getattr(made, "protect_prompt", False) and getattr(made, "sinks", 0) <= 16
    assert made.due(Moment(576, 576, "decode", 400)) in (464, 576 - 232)  # scissorhands drops half


@pytest.mark.parametrize("name", NAMES)
def test_both(name):
    made = policy(name, "both", 64)
    assert made.due(Moment(400, 400, "prefilled", 400)) == 64
    assert made.due(Moment(416, 96, "decode", 400)) is not None
    assert made.slack == SLACK


def test_what_a_contestant_names_itself_stays():
    assert policy("snapkv", "inside", 0.25, window=8, decode=True).decode
    assert policy("snapkv", "inside", 0.25, window=8).window == 8


def test_lots_are_drawn_anew_for_each_item():
    assert policy("random", "inside", 0.25).seed == 3


def test_a_policy_without_sinks_cannot_protect_a_prompt():
    with pytest.raises(Unsuitable, match="'third' has no parameter that protects the prompt"):
        kv_policy("decode", {"name": "third"}, {"budget": {}, "decode": {}}, 64, SIZES)


def test_every_protocol_is_tested():
    assert set(PROTOCOLS) == {"inside", "after", "decode", "decode-open", "both"}


@pytest.mark.parametrize(
    ("name", "more", "protects"),
    [
        ("tova", {}, 1),
        ("tova", {"recent": 20}, 20),
        ("prefixkv", {}, 0),
        ("snapkv", {"recent": 8}, 32),
        ("random", {}, 32),
        ("streaming", {}, None),
        ("h2o", {}, None),
    ],
)
def test_newest(name, more, protects):
    known = registry.get(name).model_json_schema()["properties"]
    assert newest({"name": name, **more}, known) == protects

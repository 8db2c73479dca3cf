"""Policies around policies: what a client may write, what it becomes, and which half decides what."""

import json

import pytest

from kvserve.policy import Facts, Keys, OutputWeight, PolicyError, Queries, SidePass, Values, registry, request
from kvserve.policy.budgeted import Budgeted
from server.catalog import card
from server.cli.table import details

FACTS = Facts(num_layers=4, groups=1, block_size=16, pool_tokens=1 << 16, max_model_len=1 << 14, chunk=2048)
CHUNKS = {"name": "chunkkv", "of": {"name": "snapkv", "window": 64}, "budget": 0.25}


@pytest.mark.parametrize(
    "value",
    [
        "chunkkv",
        "chunkkv:0.25",
        CHUNKS,
        json.dumps(CHUNKS),
        {"name": "chunkkv", "of": "Expected_Attention"},
        {"name": "chunkkv", "of": {"name": "criticalkv", "of": "h2o", "first": 0.25}},
    ],
    ids=str,
)
def test_over_the_wire_it_stays_the_same(value):
    policy = request.parse(value)
    text = request.dump(policy)
    assert request.parse(text) == policy
    assert request.dump(request.parse(text)) == text
    assert not json.loads(text)["of"].keys() & Budgeted.model_fields.keys()


def test_a_name_and_an_object_are_the_same():
    assert request.parse({"name": "chunkkv", "of": "h2o"}) == request.parse({"name": "chunkkv", "of": {"name": "H2O"}})


REFUSED = [
    ("full", "of", "kv_policy.of is 'full', which cannot be wrapped: it does not rank the slots of a KV head"),
    ("ksa", "of", "kv_policy.of is 'ksa', which cannot be wrapped"),
    ("prefixkv", "of", "kv_policy.of is 'prefixkv', which cannot be wrapped"),
    ("snapkv:0.5", "of.budget", "kv_policy.of.budget is not a parameter of a wrapped policy"),
    ({"name": "snapkv", "slack": 32}, "of.slack", "kv_policy.of.slack is not a parameter of a wrapped policy"),
    ({"name": "snapkv", "windw": 8}, "of.windw", "kv_policy.of.windw is not a parameter of 'snapkv'"),
    ({"name": "snapkv", "window": 0}, "of.window", "kv_policy.of.window is 0: "),
    ({"window": 8}, "of.name", "kv_policy.of needs a 'name'"),
    ("nothing", "of", "kv_policy.of 'nothing' is not installed"),
    ("{", "of", "kv_policy.of is not valid JSON"),
    (3, "of", "kv_policy.of must be a string"),
    ({"name": "criticalkv", "of": "knorm"}, "of.of", "kv_policy.of.of is 'knorm', whose ranks are no attention"),
    ({"name": "criticalkv", "of": "rkv:9"}, "of.of.budget", "kv_policy.of.of.budget is not a parameter"),
]


@pytest.mark.parametrize(("of", "param", "message"), REFUSED, ids=str)
def test_refusals_name_the_field_within(of, param, message):
    with pytest.raises(PolicyError) as refused:
        request.parse({"name": "chunkkv", "of": of})
    assert refused.value.param == f"kv_policy.{param}"
    assert str(refused.value).startswith(message)


def test_how_deep_is_bounded():
    value = "h2o"
    for _ in range(4):
        value = {"name": "chunkkv", "of": value}
    request.parse(value)
    for _ in range(400):
        value = {"name": "chunkkv", "of": value}
    with pytest.raises(PolicyError, match="policies inside one another"):
        request.parse(value)


def test_evidence_is_that_of_both():
    policy = request.parse({"name": "chunkkv", "of": {"name": "criticalkv", "of": {"name": "snapkv", "window": 9}}})
    assert policy.evidence == (Keys(), Queries(9), Values(), OutputWeight())
    assert request.parse({"name": "chunkkv", "of": "kvzip"}).evidence == (SidePass(),)


def test_the_wrapper_says_how_many_and_the_other_what_is_protected():
    policy = request.parse({"name": "chunkkv", "of": {"name": "knorm", "sinks": 7, "recent": 9}, "budget": 40})
    assert (policy.protected, policy.target(1000)) == (16, 40)
    with pytest.raises(PolicyError, match=r"kv_policy.budget is 16, but 'chunkkv' .* protects 16 tokens"):
        request.parse({"name": "chunkkv", "of": {"name": "knorm", "sinks": 7, "recent": 9}, "budget": 16})


def test_while_generating_it_does_as_the_other_unless_told():
    assert not request.parse({"name": "chunkkv", "of": "snapkv"}).decode
    assert request.parse({"name": "chunkkv", "of": "h2o"}).decode
    assert request.parse({"name": "chunkkv", "of": "snapkv", "decode": True}).decode


def test_the_other_divides_the_budget_among_layers():
    policy, inner = request.parse({"name": "chunkkv", "of": "pyramidkv"}), request.parse("pyramidkv")
    assert policy.shares(100, 4, 900) == inner.shares(100, 4, 900)
    assert policy.bundled(FACTS) and not request.parse("chunkkv").bundled(FACTS)


def test_checks_of_both():
    for fields, facts, param, why in [
        ({"of": {"name": "pyramidkv", "granularity": "layer"}}, {}, "kv_policy.of.granularity", "kv_policy.of 'pyram"),
        ({"of": "expected-attention"}, {"rope_problem": "it cannot"}, "kv_policy.name", "kv_policy 'chunkkv' undoes"),
        ({"of": "kvzip"}, {"side_pass_problem": "no"}, "kv_policy.name", "kv_policy 'chunkkv' has the model repeat"),
        ({"of": "criticalkv"}, {"output_problem": "no"}, "kv_policy.name", "kv_policy 'chunkkv' weighs values"),
    ]:
        with pytest.raises(PolicyError) as refused:
            request.parse({"name": "chunkkv", **fields}).check(FACTS._replace(**facts))
        assert (refused.value.param, str(refused.value).startswith(why)) == (param, True)
    settled = request.parse({"name": "chunkkv", "of": "h2o"}).settled(FACTS).for_prompt(100)
    assert settled == request.parse({"name": "chunkkv", "of": "h2o"})


def test_it_is_shown_like_others():
    shown = card("chunkkv")
    assert shown.evidence == ["keys", "queries"]
    assert shown.parameters["properties"]["of"]["default"] == {"name": "snapkv", "kernel": 1}
    assert "of: string or object, default {'name': 'snapkv', 'kernel': 1}" in details(shown)
    assert card("criticalkv").evidence == ["keys", "queries", "values", "output_weight"]
    assert registry.get("chunkkv").model_json_schema()["additionalProperties"] is False

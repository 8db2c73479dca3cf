"""From what a user writes to a policy: every form, and every mistake named."""

import pytest

from kvserve.policy import registry, request
from kvserve.policy.errors import PolicyError

GOOD = [
    ("snapkv", {"name": "snapkv", "budget": 0.5}),
    ("snapkv:0.25", {"name": "snapkv", "budget": 0.25}),
    ("SnapKV:512", {"name": "snapkv", "budget": 512}),
    ({"name": "scissorhands", "budget": 64, "history": 100}, {"budget": 64, "history": 100}),
    ('{"name": "random", "seed": 7}', {"name": "random", "seed": 7}),
    ({"name": "knorm", "budget": 1.0}, {"budget": 1.0}),
    ({"name": "knorm", "when": "pressure"}, {"when": "pressure"}),
    ("full", {"name": "full"}),
]
BAD = [
    ("nope", "kv_policy", "installed: chunkkv, criticalkv, elastic-cache, expected-attention, full, h2o, keydiff"),
    ("", "kv_policy", "'name' or 'name:budget'"),
    (7, "kv_policy", "got int"),
    ("{'a'", "kv_policy", "not valid JSON"),
    ('{"a":' * 5000, "kv_policy", "not valid JSON"),
    ('{"budget":' + "9" * 5000 + "}", "kv_policy", "not valid JSON"),
    ({"budget": 3}, "kv_policy.name", "needs a 'name'"),
    ("snapkv:lots", "kv_policy.budget", "'lots'"),
    ("snapkv:0", "kv_policy.budget", "whole number >= 1"),
    (f"snapkv:{2**31}", "kv_policy.budget", "at most 2147483647"),
    ({"name": "snapkv", "\ud800": 1}, "kv_policy", "valid string"),
    ("snapkv:-3", "kv_policy.budget", "-3"),
    ("snapkv:0.0", "kv_policy.budget", "(0, 1]"),
    ("snapkv:1.01", "kv_policy.budget", "1.01"),
    ("snapkv:nan", "kv_policy.budget", "(0, 1]"),
    ("snapkv:32", "kv_policy.budget", "at least 33"),
    ({"name": "knorm", "budget": "half"}, "kv_policy.budget", "'half'"),
    ({"name": "knorm", "budget": True}, "kv_policy.budget", "True"),
    ({"name": "knorm", "windo": 1}, "kv_policy.windo", "allowed: budget"),
    ({"name": "snapkv", "window": "32"}, "kv_policy.window", "valid integer"),
    ({"name": "snapkv", "window": 0}, "kv_policy.window", "greater than or equal to 1"),
    ({"name": "snapkv", "kernel": 4}, "kv_policy.kernel", "odd"),
    ({"name": "scissorhands", "slope": 0.6}, "kv_policy.slope", "less than or equal to 0.5"),
    ({"name": "knorm", "slack": 1}, "kv_policy.slack", "16"),
    ({"name": "knorm", "when": "never"}, "kv_policy.when", "always"),
    ({"name": "full", "budget": 3}, "kv_policy.budget", "all tokens"),
]


@pytest.mark.parametrize(("value", "fields"), GOOD, ids=str)
def test_good(value, fields):
    assert request.parse(value).wire().items() >= fields.items()


@pytest.mark.parametrize(("value", "param", "says"), BAD, ids=lambda x: str(x)[:30])
def test_bad(value, param, says):
    with pytest.raises(PolicyError) as error:
        request.parse(value)
    assert error.value.param == param
    assert says in str(error.value)


@pytest.mark.parametrize("name", registry.installed())
def test_wire_round_trip(name):
    policy = request.parse(name)
    assert request.parse(request.dump(policy)) == policy
    with pytest.raises(Exception, match="frozen"):
        policy.budget = 3


def test_hyphen_and_underscore_are_the_same():
    assert registry.canonical("Elastic_Cache") == registry.canonical("elastic-cache")


def test_every_parameter_is_described():
    for name, policy in registry.installed().items():
        for field, info in policy.model_json_schema()["properties"].items():
            assert info.get("description"), f"{name}.{field}"

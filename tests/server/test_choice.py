"""Which policy a request gets, and what is refused with which `param`."""

import pytest

from kvserve.policy import Facts
from kvserve.policy.errors import PolicyError
from kvserve.startup.options import KVOptions
from server.http.choice import HEADER, Choice, shown

FACTS = Facts(num_layers=4, groups=1, block_size=16, pool_tokens=10_000, max_model_len=4096, chunk=512)


def _choice(default: str | None = None, facts: Facts | None = FACTS) -> Choice:
    return Choice(KVOptions.model_validate({"policy": default}), facts)


def test_no_policy_anywhere_is_none() -> None:
    assert _choice().of(None, {}, None) is None


def test_field_beats_header_beats_xargs_beats_default() -> None:
    choice = _choice("random:0.5")
    header, xargs = {HEADER: "snapkv:0.25"}, {"kv_policy": "knorm:0.25"}
    names = [
        choice.of("streaming:0.25", header, xargs),
        choice.of(None, header, xargs),
        choice.of(None, {}, xargs),
        choice.of(None, {}, {"other": 1}),
    ]
    assert [chosen and chosen.policy.name for chosen in names] == ["streaming", "snapkv", "knorm", "random"]


def test_full_beats_the_default() -> None:
    chosen = _choice("random:0.5").of("full", {}, None)
    assert chosen is not None
    assert not chosen.policy.compresses


BAD: list[tuple[object, str, str]] = [
    ("nope", "kv_policy", "unknown_policy"),
    ("", "kv_policy", "bad_parameter"),
    (5, "kv_policy", "bad_parameter"),
    ([], "kv_policy", "bad_parameter"),
    ({}, "kv_policy.name", "bad_parameter"),
    ("streaming:x", "kv_policy.budget", "bad_parameter"),
    ("streaming:0", "kv_policy.budget", "bad_parameter"),
    ("streaming:-1", "kv_policy.budget", "bad_parameter"),
    ("streaming:1.5", "kv_policy.budget", "bad_parameter"),
    ("streaming:nan", "kv_policy.budget", "bad_parameter"),
    ({"name": "streaming", "budget": 2}, "kv_policy.budget", "bad_parameter"),
    ({"name": "streaming", "budget": "0.5"}, "kv_policy.budget", "bad_parameter"),
    ({"name": "streaming", "colour": 1}, "kv_policy.colour", "bad_parameter"),
    ({"name": "streaming", "slack": 1}, "kv_policy.slack", "bad_parameter"),
    ({"name": "streaming", "slack": "128"}, "kv_policy.slack", "bad_parameter"),
    ({"name": "streaming", "when": "never"}, "kv_policy.when", "bad_parameter"),
    ("{not json", "kv_policy", "bad_parameter"),
]
HEADERS = [case for case in BAD if isinstance(case[0], str)]


@pytest.mark.parametrize(("value", "param", "reason"), BAD)
def test_bad_field_is_named(value: object, param: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        _choice().of(value, {}, None)
    assert (caught.value.param, caught.value.reason) == (param, reason)


@pytest.mark.parametrize(("value", "param", "reason"), HEADERS)
def test_bad_header_is_named_alike(value: str, param: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        _choice().of(None, {HEADER: value}, None)
    assert (caught.value.param, caught.value.reason) == (param, reason)


def test_unknown_policy_lists_the_installed_ones() -> None:
    with pytest.raises(PolicyError, match="streaming"):
        _choice().of("nope", {}, None)


def test_without_kvserve_only_full_is_served() -> None:
    choice = _choice(facts=None)
    assert choice.of("full", {}, None) is not None
    with pytest.raises(PolicyError, match="kvserve serve") as caught:
        choice.of("streaming:0.25", {}, None)
    assert caught.value.reason == "unsupported"


def test_a_bad_default_is_refused_at_start() -> None:
    with pytest.raises(PolicyError):
        _choice("nope")


def test_hyphen_and_underscore_are_the_same() -> None:
    chosen = _choice().of("Streaming ", {}, None)
    assert chosen is not None
    assert shown(chosen.policy) == "streaming:0.5"

"""What a policy may declare that it reads, and what its view says about what it has not declared."""

import pytest
import torch

from kvserve.policy import (
    Calibrated,
    Keys,
    LayerView,
    Mass,
    Moments,
    OutputWeight,
    Policy,
    Queries,
    Rotation,
    ScoringPolicy,
    SidePass,
    SummaryTokens,
    Values,
    request,
)
from kvserve.policy.evidence import merged
from kvserve.policy.requirements import Asks

UNKNOWN = [
    (("keys",), "has 'keys'; allowed: values of the kinds Keys, Values"),
    ([Keys()], r"is \[Keys\(\)\]; allowed: a tuple"),
    ((Queries,), "has <class 'kvserve.policy.evidence.Queries'>; allowed"),
    ((Queries(3), Queries(4)), r".*; allowed: each kind of evidence once"),
    ((Mass(), Moments(observes="all")), ".*observe the same queries"),
]


@pytest.mark.parametrize(("reads", "why"), UNKNOWN)
def test_unknown_evidence_is_refused_when_the_class_is_made(reads, why):
    with pytest.raises(TypeError, match=f"Odd.reads {why}"):
        type("Odd", (ScoringPolicy,), {"name": "odd", "reads": reads})


@pytest.mark.parametrize(("declared", "why"), UNKNOWN)
def test_and_that_of_an_instance_when_it_is_made(declared, why):
    odd = type("Odd", (ScoringPolicy,), {"name": "odd", "evidence": property(lambda self: declared)})
    with pytest.raises(TypeError, match=f"Odd.evidence {why}"):
        odd()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Queries(0),
        lambda: Queries("3"),
        lambda: Mass(every=0),
        lambda: Mass(observes="some"),
        lambda: Moments("some"),
        lambda: SummaryTokens(window=0),
    ],
)
def test_values_have_ranges(make):
    with pytest.raises(ValueError, match="allowed: "):
        make()


GIVEN = {
    "queries": Queries(1),
    "query_positions": Queries(1),
    "mass": Mass(),
    "moments": Moments(),
    "rope": Rotation(),
    "calibration": Calibrated(),
    "repeated": SidePass(),
    "output_weight": OutputWeight(),
    "summaries": SummaryTokens(),
}


def view(**more):
    return LayerView(2, 4, 3, 0, torch.arange(3)[None], lambda which: torch.zeros(1, 3, 4), **more)


@pytest.mark.parametrize("member", GIVEN)
def test_the_view_names_the_missing_declaration(member):
    kind = type(GIVEN[member]).__name__
    with pytest.raises(RuntimeError, match=rf"reads view.{member} and does not declare {kind}: .*declared: Keys\(\)"):
        getattr(view(evidence=(Keys(),)), member)
    with pytest.raises(RuntimeError, match=f"view.{member} is not known yet in layer 2, though {kind} is declared"):
        getattr(view(evidence=(GIVEN[member],)), member)
    value = torch.ones(1)
    assert getattr(view(**{member: value}), member) is value


def test_what_serves_several_policies():
    some = (Keys(), Queries(8), Mass(every=4), SidePass())
    more = (Values(), Queries(32), Mass(every=2, observes="all"), Keys())
    assert merged(some, more) == (Keys(), Queries(32), Mass(every=2, observes="all"), SidePass(), Values())
    assert merged() == ()


def test_parameters_say_what_is_read():
    """What the engine is asked for, by name and parameters of a policy."""

    def asks(**fields):
        return Asks.of(request.parse(fields))

    assert asks(name="snapkv", window=9).query_window == 9
    assert asks(name="tova").query_window == 1
    assert asks(name="prefixkv", every=4)[1:5] == (0, ("mass",), "prompt", 4)
    assert asks(name="h2o")[1:5] == (0, ("mass",), "all", 1)
    assert asks(name="expected-attention")[1:5] == (0, ("moments",), "all", 1)
    assert Calibrated() in asks(name="prefixkv", profile="offline").evidence
    assert Calibrated() not in asks(name="prefixkv").evidence
    assert asks(name="kvzip").side_pass and not asks(name="snapkv").side_pass
    assert asks(name="ksa", window=3, summaries=False)[6:] == (True, False, 3, False)
    assert Asks.of(Policy.model_construct()) == Asks()

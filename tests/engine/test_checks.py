"""The checks of `kvserve check-policy` that need an engine find what they are there for."""

from typing import ClassVar

import pytest

from kvserve.policy import Evidence, Keys, ScoringPolicy, registry, request
from kvserve.testing import engine as checked
from models import MINI


class Moody(ScoringPolicy):
    """Scores that depend on how often any request has asked before."""

    name: ClassVar[str] = "moody"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(),)
    asked: ClassVar[list[int]] = []

    def scores(self, view):
        self.asked.append(view.logical)
        return view.keys.norm(dim=-1) * (-1) ** (len(self.asked) // view.num_layers)


class Failing(ScoringPolicy):
    """Fails when it is to choose."""

    name: ClassVar[str] = "failing"

    def scores(self, view):
        raise RuntimeError("no idea")


@pytest.fixture(scope="module")
def engine():
    found = checked.Engine(str(MINI))
    yield found
    found.stop()


@pytest.fixture
def states(engine, monkeypatch):
    """What the checks say of a policy, which is installed for it."""

    def say(policy):
        known = {**registry.installed(), policy.name: type(policy)}
        monkeypatch.setattr(registry, "installed", lambda: known)
        return {result.check: (result.state, result.why) for result in engine.results(policy)}

    return say


@pytest.mark.parametrize("name", ["snapkv", "prefixkv", "ksa"])
def test_a_sound_policy_passes(states, name):
    found = states(request.parse(name))
    assert len(found) >= 2 and {state for state, _ in found.values()} == {"ok"}, found


def test_a_choice_that_depends_on_others_is_found(states):
    found = states(Moody())
    assert found["same-answer"] == found["blocks-given-back"] == ("ok", "")
    state, why = found["alone-and-among-others"]
    assert state == "failed" and "are the same" in why


def test_a_fault_is_told_with_its_cause(states):
    found = states(Failing())
    assert found["same-answer"] == ("ok", "")  # it is never asked
    for check in ("blocks-given-back", "alone-and-among-others"):
        state, why = found[check]
        assert state == "failed" and "no idea" in why


def test_what_the_model_cannot_serve_is_skipped(states, engine, monkeypatch):
    kv = engine.core.scheduler.kv
    monkeypatch.setattr(kv, "facts", kv.facts._replace(calibrated=()))
    assert states(request.parse("triattention"))["engine"][0] == "skipped"

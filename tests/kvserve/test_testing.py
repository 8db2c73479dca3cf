"""What authors test their policies with: views that show what the engine would, and checks that find mistakes."""

from typing import ClassVar

import pytest
import torch
from pydantic import Field

from kvserve.policy import Evidence, Keys, ScoringPolicy, registry, request
from kvserve.policy.requirements import foresees
from kvserve.testing import checks, layer_view, random_layer


def test_a_view_in_one_line():
    view = layer_view([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]], queries=[[[1.0, 0.0]]])
    assert (view.num_heads, view.num_slots, view.logical, view.prompt) == (1, 3, 3, 3)
    assert view.positions.tolist() == [[0, 1, 2]]
    assert view.query_positions.tolist() == [2]
    expected = torch.softmax(torch.tensor([1.0, 0.0, 3.0]) / 2**0.5, 0)
    torch.testing.assert_close(view.per_head(lambda probs, _: probs[0, 0])[0], expected)
    torch.testing.assert_close(view.mass[0, :, 0], expected)
    with pytest.raises(ValueError, match="no values"):
        _ = view.values


def test_mass_is_causal_and_of_each_query_head():
    made = random_layer(heads=2, group=3, slots=40, queries=40)
    mass = made.view().mass
    assert mass.shape == (2, 40, 3)
    torch.testing.assert_close(mass.sum(1), torch.full((2, 3), 40.0))  # each query gives away 1
    alone = torch.softmax(made.queries[-1, 5] @ made.keys[1].T / 16**0.5, 0)[-1]
    torch.testing.assert_close(mass[1, -1, 2], alone)  # the newest slot is seen by the newest query only


def test_moments_are_of_queries_before_their_rotation():
    made = random_layer(slots=40, queries=8)
    view = made.view()
    before = view.rope.undo(made.queries, torch.arange(32, 40))
    torch.testing.assert_close(view.rope.turned(before, torch.arange(32, 40)), made.queries, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(view.moments.total, before.sum(0))


def test_a_policy_sees_no_more_than_it_reads():
    made = random_layer()
    seen = made.view(request.parse({"name": "snapkv", "window": 32}))
    assert len(seen.queries) == 32 and seen.query_positions.tolist() == list(range(668, 700))
    for missing, kind in (("mass", "Mass"), ("moments", "Moments"), ("calibration", "Calibrated")):
        with pytest.raises(RuntimeError, match=f"reads view.{missing} and does not declare {kind}"):
            getattr(seen, missing)
    with pytest.raises(RuntimeError, match="does not declare Queries"):
        _ = made.view(request.parse("knorm")).queries
    assert made.view(request.parse("h2o")).mass is not None


# -- each check finds the mistake that it is there for ------------------------------------------------


class Sound(ScoringPolicy):
    """Keep the largest keys."""

    name: ClassVar[str] = "sound"
    reads: ClassVar[tuple[Evidence, ...]] = (Keys(),)

    def scores(self, view):
        return view.keys.norm(dim=-1)


class Undescribed(Sound):
    """A parameter of which nobody knows what it does."""

    secret: int = 3


class Eager(Sound):
    """Acts although nothing is over its budget."""

    def due(self, at):
        return min(self.target(at.logical, at.prompt), at.logical - 1)


class Short(Sound):
    """Keeps one less than it was asked for."""

    def due(self, at):
        keep = super().due(at)
        return keep and keep - 1


class Asleep(Sound):
    """Does not want to be asked when it has something to say."""

    def next_due(self, at):
        return at.logical + 1000


class Unprotected(Sound):
    """Forgets that its parameters promise sinks and recent tokens."""

    def select(self, view, keep):
        return self.scores(view).topk(keep).indices.sort(dim=1).values


class Unsorted(Sound):
    """Slots in the order of their scores."""

    def select(self, view, keep):
        return self.scores(view).topk(keep).indices


class Writing(Sound):
    """Works in the keys that it was shown."""

    def scores(self, view):
        return view.keys.mul_(2).norm(dim=-1)


class Forgetful(Sound):
    """Leaves a state whose second dimension is not that of the slots."""

    def scores(self, view):
        scores = super().scores(view) + view.state.get("bonus", 0)
        view.state["bonus"] = scores[:, :100]
        return scores


class MoodyView(Sound):
    """Draws anew each time."""

    def scores(self, view):
        return torch.rand(view.positions.shape, device=view.positions.device)


class Gossiping(Sound):
    """One head looks at the others, and says nothing of it."""

    def scores(self, view):
        return super().scores(view) * view.keys.mean(dim=0).norm(dim=-1)


class Greedy(Sound):
    """Gives every layer twice the budget."""

    def shares(self, keep, num_layers, held):
        return [2 * keep] * num_layers


class OnTheCPU(Sound):
    """Makes a tensor without saying where."""

    weight: float = Field(1.0, description="Of the age")

    def scores(self, view):
        return super().scores(view) + self.weight * torch.arange(view.num_slots)


MISTAKES = {
    Undescribed: "declared",
    Eager: "enough_budget",
    Short: "target",
    Asleep: "rhythm",
    Unprotected: "selection",
    Unsorted: "selection",
    Writing: "selection",
    Forgetful: "second_round",
    MoodyView: "repeatable",
    Gossiping: "heads_apart",
    Greedy: "layer_budgets",
    OnTheCPU: "device",
}


@pytest.fixture
def installed(monkeypatch):
    """Classes above, as if a package had registered them under the name `sound`."""

    def install(policy):
        monkeypatch.setattr(registry, "installed", lambda: {"sound": policy})
        return policy()

    return install


def test_a_sound_policy_passes(installed):
    assert [result.state for result in checks.run(installed(Sound))] == ["ok"] * len(checks.CHECKS)


@pytest.mark.parametrize("wrong", MISTAKES, ids=lambda wrong: wrong.__name__)
def test_a_mistake_fails_its_check(wrong, installed):
    failed = {result.check: result.why for result in checks.run(installed(wrong)) if result.state == "failed"}
    assert failed.pop(MISTAKES[wrong].replace("_", "-"))
    assert not failed or wrong in (Eager, Short, Unsorted, MoodyView, Gossiping), failed  # these break other checks too


def test_every_check_has_a_mistake():
    assert {check.__name__ for check in checks.CHECKS} == set(MISTAKES.values())


class OnlyDue(Sound):
    """Says when, and leaves the rest to its base, which cannot know."""

    def due(self, at):
        return self.target(at.logical, at.prompt) if at.physical > 600 else None


class Both(OnlyDue):
    def next_due(self, at):
        return at.logical + max(1, 601 - at.physical)


@pytest.mark.parametrize(("policy", "known"), [(Sound, True), (OnlyDue, False), (Both, True), (Asleep, True)])
def test_a_rhythm_is_believed_only_beside_its_own_due(policy, known):
    assert foresees(policy) is known

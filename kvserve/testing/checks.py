"""What every policy must do, checked on random tensors; no engine is needed.

Each check takes a policy and raises AssertionError, or whatever the policy raises, if it does not hold. U1 to U9 are
the properties that all compression policies share: U1 enough budget changes nothing, U2 the exact number of tokens,
U3 slots unique, in range and ascending, U4 protected tokens stay, U5 the order of slots in memory does not matter,
U6 nor do the other requests of a batch, U7 nor do the chunks in which a prompt is read, U8 blocks are given back once,
U9 the same input gives the same choice. U5 to U8 need an engine: `kvserve.testing.engine`, and U5 `tests/engine`.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from kvserve.policy import EVERYTHING, LayerView, Merged, Moment, Policy, request
from kvserve.policy.errors import said
from kvserve.policy.requirements import foresees
from kvserve.policy.selection import Room, checked, shared
from kvserve.testing.device import DEVICE, elsewhere, is_placed, place
from kvserve.testing.views import RandomLayer, random_layer

SLOTS, PROMPT, LAYERS = 700, 100, 4
MORE = 40
"""Tokens that come between two rounds."""


class Result(NamedTuple):
    """What one check found."""

    check: str
    about: str  # one line
    state: Literal["ok", "failed", "skipped"]
    why: str = ""


Check = Callable[[Policy], None]


def run(policy: Policy) -> Iterator[Result]:
    """All checks that apply to this policy, one after the other."""
    for check in CHECKS if policy.compresses and policy.budgeted else UNBUDGETED:
        yield found(check, policy)


def found(check: Callable[..., None], *given: object) -> Result:
    """What a check says of what it is given; all that goes wrong in it counts as the policy's."""
    result = Result(check.__name__.replace("_", "-"), " ".join((check.__doc__ or "").split()), "ok")
    try:
        check(*given)
    except Exception as error:
        why = str(error) if type(error) is AssertionError and str(error) else said(error)
        return result._replace(state="failed", why=why)
    return result


# -- the checks ---------------------------------------------------------------------------------------


def declared(policy: Policy) -> None:
    """It says what it is, describes its parameters, and survives the way to the engine."""
    assert (type(policy).__doc__ or "").strip(), "the class has no docstring; its first paragraph is shown to users"
    silent = [name for name, field in type(policy).model_fields.items() if not field.description]
    assert not silent, f"parameters without a description: {', '.join(silent)}"
    type(policy).model_json_schema()
    assert request.parse(request.dump(policy)) == policy, "parsing what `wire` says gives another policy"


def enough_budget(policy: Policy) -> None:
    """U1: a budget of at least the length is never acted upon."""
    for budget in (SLOTS, 1.0):
        for stage in ("prefill", "prefilled", "decode"):
            due = with_budget(policy, budget).due(Moment(SLOTS, SLOTS, stage, PROMPT))
            assert due is None, f"budget {budget!r} of {SLOTS} tokens: {due} are to stay at the stage {stage!r}"


def target(policy: Policy) -> None:
    """U2: what is to stay is the budget, fractions rounded up, and less than there is."""
    for each in budgeted(policy):
        for logical in (1, 7, 65, 127, SLOTS, 4000):
            keep, wanted = each.due(Moment(logical, logical, "prefilled", PROMPT)), each.target(logical, PROMPT)
            what = f"budget {each.budget!r} of {logical} tokens: due says {keep}, target {wanted}"
            if keep is None:
                assert logical <= wanted, what
            else:
                assert keep == wanted < logical, what
                assert isinstance(each.budget, int) or keep >= each.budget * logical - 1e-6, what


def rhythm(policy: Policy) -> None:
    """While a request generates, nothing is due before the length that `next_due` has named."""
    if not foresees(type(policy)):
        return
    for each in budgeted(policy):
        for logical, physical in ((SLOTS, PROMPT), (SLOTS, SLOTS), (SLOTS + MORE + 1, SLOTS // 2)):
            now = Moment(logical, physical, "decode", PROMPT)
            if each.due(now) is not None:
                continue
            for more in range(1, min(each.next_due(now) - logical, 5 * PROMPT)):
                due = each.due(Moment(logical + more, physical + more, "decode", PROMPT))
                what = f"budget {each.budget!r}: at {logical} tokens next_due says {each.next_due(now)}"
                assert due is None, f"{what}, and at {logical + more} {due} are to stay"


def selection(policy: Policy) -> None:
    """U2, U3, U4: as many slots as asked for, ascending, the protected among them; keys and values are left alone."""
    for each in budgeted(policy):
        made = random_layer(slots=SLOTS)
        copies = [tensor.clone() for tensor in made]
        stay = chosen(each, made)
        for row in stay.tolist():
            lost = _protected(each) - set(row)
            assert not lost, f"budget {each.budget!r}: protected slots {sorted(lost)[:8]} do not stay"
        unchanged = all(torch.equal(a, b) for a, b in zip(copies, made, strict=True))
        assert unchanged, "the policy has written into keys, values or queries"


def second_round(policy: Policy) -> None:
    """What the first round left, state included, is what a second one can work with."""
    policy = with_budget(policy, _small(policy))
    old, new = random_layer(slots=SLOTS), random_layer(1, slots=MORE)
    view = old.view(policy, prompt=PROMPT)
    stay = _choice(policy, view, policy.target(SLOTS, PROMPT))
    keys, values, positions = (_take(each, stay) for each in (old.keys, old.values, view.positions))
    fresh = torch.arange(SLOTS, SLOTS + MORE).expand(len(stay), -1)
    grown = RandomLayer(torch.cat([keys, new.keys], 1), torch.cat([values, new.values], 1), old.queries)
    second = grown.view(
        policy, prompt=PROMPT, positions=torch.cat([positions, fresh], 1), since=SLOTS, memo=view.memo,
        state={name: _padded(_take(kept, stay)) for name, kept in view.state.items()},
    )  # fmt: skip
    _choice(policy, second, policy.target(SLOTS + MORE, PROMPT))


def repeatable(policy: Policy) -> None:
    """U9: the same layer gives the same slots, also where all scores are equal."""
    policy = with_budget(policy, _small(policy))
    flat = RandomLayer(*(torch.ones_like(each) for each in random_layer(slots=SLOTS)))
    for name, made in (("random contents", random_layer(slots=SLOTS)), ("equal contents", flat)):
        one, two = (chosen(policy, made) for _ in range(2))
        assert torch.equal(one, two), f"{name}: two looks at one layer give different slots"


def heads_apart(policy: Policy) -> None:
    """What a KV head keeps does not depend on another one, or, with per_head = False, all keep the same."""
    policy, within = with_budget(policy, _small(policy)), getattr(policy, "of", policy)
    if policy.per_head and not within.per_head:
        return  # a policy around one that looks at all heads
    before = random_layer(slots=SLOTS)
    keys = before.keys.clone()
    keys[1] = random_layer(2, slots=SLOTS).keys[1]
    stay, after = chosen(policy, before), chosen(policy, before._replace(keys=keys))
    if policy.per_head:
        assert torch.equal(stay[0], after[0]), "other keys in head 1 change what head 0 keeps; say per_head = False"
    else:
        assert torch.equal(stay[0], stay[1]), "per_head is False, but the heads keep different slots"


def layer_budgets(policy: Policy) -> None:
    """Budgets that differ by layer are one number for each, and their mean is what was asked for."""
    policy = with_budget(policy, _small(policy))
    keep = policy.target(SLOTS, PROMPT)
    if (shares := policy.shares(keep, LAYERS, SLOTS)) is not None:
        bounded = [share for share in shares if share != EVERYTHING]
        assert len(shares) == LAYERS, f"shares gave {len(shares)} numbers for {LAYERS} layers"
        assert sum(bounded) <= (keep + 1) * LAYERS, f"shares gave {shares}, whose mean is more than {keep}"
    if policy.own_shares:
        views = [random_layer(i, slots=SLOTS).view(policy, layer=i, prompt=PROMPT) for i in range(LAYERS)]
        shared(policy.own_shares_of(views, keep), LAYERS, keep)


def device(policy: Policy) -> None:
    """All tensors that it makes are on the device of the view, so that it runs on a GPU."""
    policy = with_budget(policy, _small(policy))
    keep = policy.target(SLOTS, PROMPT)
    with elsewhere():
        view = random_layer(slots=SLOTS).view(policy, prompt=PROMPT)
        stay = _slots(next(iter(policy.choose([_placed(view)], [keep]))))
        assert is_placed(stay), f"the slots are on {stay.device}, not on the device of the view, here {DEVICE}"


UNBUDGETED: tuple[Check, ...] = (declared,)
CHECKS: tuple[Check, ...] = (
    declared, enough_budget, target, rhythm, selection, second_round, repeatable, heads_apart, layer_budgets, device,
)  # fmt: skip


# -- their parts --------------------------------------------------------------------------------------


def with_budget(policy: Policy, budget: int | float) -> Policy:
    given = {name: value for name, value in policy.wire().items() if name != "name"}
    return type(policy)(**{**given, "budget": budget})


def budgeted(policy: Policy) -> Iterator[Policy]:
    """The policy with budgets of both kinds, small and large."""
    for budget in (_small(policy), 300, 0.1, 0.5):
        yield with_budget(policy, max(budget, policy.protected + 1) if isinstance(budget, int) else budget)


def chosen(policy: Policy, made: RandomLayer) -> Tensor:
    """(H, keep): the slots that stay of this layer when its prompt is complete, checked as the engine does."""
    keep = policy.due(Moment(SLOTS, SLOTS, "prefilled", PROMPT))
    assert keep is not None, f"budget {policy.budget!r} of {SLOTS} tokens: nothing is due"
    return _choice(policy, made.view(policy, prompt=PROMPT), keep)


def _choice(policy: Policy, view: LayerView, keep: int) -> Tensor:
    """One layer's choice, as the engine asks for it. Raises ValueError if it is against the contract."""
    sizes = view.load("keys").shape[2], view.load("values").shape[2]
    choice = next(iter(policy.choose([view], [keep])))
    return checked(choice, Room(view.num_heads, view.num_slots, keep, *sizes)).slots


def _take(values: Tensor, stay: Tensor) -> Tensor:
    """(H, n, ...) -> (H, keep, ...): what belongs to the slots that stay, as the engine carries it on."""
    return torch.stack([row[kept] for row, kept in zip(values, stay, strict=True)])


def _padded(state: Tensor) -> Tensor:
    """State with zeros for the tokens that came since."""
    return torch.cat([state, state.new_zeros(len(state), MORE, *state.shape[2:])], dim=1)


def _placed(view: LayerView) -> LayerView:
    """The same view with all its tensors on a device that is not the CPU."""
    shown = {field.name: vars(view)[field.name] for field in fields(view)}
    moved = tree_map(lambda each: place(each) if isinstance(each, Tensor) else each, shown)
    moved["load"] = lambda which: place(view.load(which))
    if shown["output_weight"] is not None:
        moved["output_weight"] = lambda: place(view.output_weight())
    return LayerView(**moved)


def _slots(choice: Tensor | Merged) -> Tensor:
    return choice.slots if isinstance(choice, Merged) else choice


def _small(policy: Policy) -> int:
    return max(64, policy.protected + 1)


def _protected(policy: Policy) -> set[int]:
    """Slots that the policy's own parameters keep: the first ones, and the newest as far as `protected` counts them."""
    policy = getattr(policy, "of", policy)
    sinks = getattr(policy, "sinks", 0)
    newest = [getattr(policy, name, 0) for name in ("recent", "window")]
    recent = max((count for count in newest if sinks + count <= policy.protected), default=0)
    return {*range(sinks), *range(SLOTS - recent, SLOTS)}

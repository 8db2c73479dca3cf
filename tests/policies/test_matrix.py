"""Every installed policy through the checks of `kvserve check-policy` (U6 to U8 need an engine: tests/engine)."""

from itertools import product

import pytest

from kvserve.policy import PolicyError, registry, request
from kvserve.testing.checks import CHECKS, UNBUDGETED

POLICIES = registry.installed()
BUDGETED = [name for name, policy in POLICIES.items() if policy.compresses and policy.budgeted]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", BUDGETED)
def test_policies_keep_to_the_contract(name, check):
    check(request.parse(name))


@pytest.mark.parametrize("check", UNBUDGETED, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(set(POLICIES) - set(BUDGETED)))
def test_so_do_those_without_a_budget(name, check):
    check(request.parse(name))


def wrapped():
    """Every policy around every other one that it can be around."""
    for outer, inner in product(BUDGETED, BUDGETED):
        try:
            yield request.parse({"name": outer, "of": inner, "budget": 100})
        except PolicyError:
            continue


@pytest.mark.parametrize("policy", wrapped(), ids=lambda policy: f"{policy.name} of {policy.of.name}")
def test_so_do_policies_around_policies(policy):
    for check in CHECKS:
        check(policy)

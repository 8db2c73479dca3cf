"""No client can name a salt that a policy makes, and no two requests that must not meet have the same one."""

from itertools import product

from kvserve.policy.salts import OURS, THEIRS, salted, unsalted

POLICIES = [None, "ksa as trained True", "mark", "mark\0", ""]
CLIENTS = [None, "tenant", "/ksa as trained True", "mark", "\0", OURS, THEIRS, f"{OURS}mark\0", f"{THEIRS}{OURS}mark\0"]


def test_clients_salts_stay_their_own():
    assert salted("tenant", None) == "tenant"
    assert salted(None, None) is None


def test_no_client_reaches_a_policys_blocks():
    made = {salted(client, policy) for client, policy in product(CLIENTS, POLICIES) if policy is not None}
    for client in [*CLIENTS, *(salt for salt in made if salt)]:
        assert salted(client, None) not in made


def test_all_differ():
    pairs = list(product(CLIENTS, ["ksa", "mark"]))
    assert len({salted(*pair) for pair in pairs}) == len(pairs)


def test_without_the_policy():
    for client, policy in product(CLIENTS, POLICIES):
        assert unsalted(salted(client, policy), policy) == salted(client, None)

"""The installed policies: entry points of the group `kvserve.policies`, built-in ones included."""

from functools import cache
from importlib.metadata import entry_points

from kvserve.policy import Policy
from kvserve.policy.errors import PolicyError

GROUP = "kvserve.policies"


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


@cache
def _loaded() -> tuple[dict[str, type[Policy]], dict[str, str]]:
    found: dict[str, type[Policy]] = {}
    broken: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        name = canonical(entry.name)
        try:
            policy = entry.load()
        except Exception as error:  # a broken third-party package must not stop the server
            broken[name] = f"{entry.value}: {error!r}"
            continue
        if name in found and found[name] is not policy:
            raise RuntimeError(f"two installed packages register the policy {name!r}: {found[name]}, {policy}")
        found[name] = policy
    return dict(sorted(found.items())), broken


def installed() -> dict[str, type[Policy]]:
    """Policy classes by canonical name."""
    return _loaded()[0]


def broken() -> dict[str, str]:
    """Registered policies that could not be imported, with the reason."""
    return _loaded()[1]


def get(name: str) -> type[Policy]:
    """The class of a policy; raises PolicyError that lists what is installed."""
    found = installed().get(canonical(name))
    if found is None:
        raise PolicyError(
            f"kv_policy {name!r} is not installed; installed: {', '.join(installed())}",
            reason="unknown_policy",
        )
    return found

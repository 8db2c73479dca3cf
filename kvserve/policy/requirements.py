"""What a policy asks of the engine, read from it once and checked: later steps take its word from here."""

from typing import Any, NamedTuple

from kvserve.policy import Policy

GATHERED = {"mass", "moments"}


class Asks(NamedTuple):
    """Named as in `Policy`. A policy that has failed asks for nothing."""

    query_window: int = 0
    gathers: tuple[str, ...] = ()
    observes: str = "prompt"
    mass_every: int = 1
    own_shares: bool = False
    summaries: bool = False
    side_pass: bool = False
    text_window: int = 0
    summarised: bool = True

    @classmethod
    def of(cls, policy: Policy) -> "Asks":
        """Raises ValueError for what the engine cannot give, and whatever the policy raises."""
        return cls(
            query_window=whole("query_window", policy.query_window, 0),
            gathers=_gathered(tuple(policy.gathers)),
            observes=_one_of("observes", policy.observes, ("prompt", "all")),
            mass_every=whole("mass_every", policy.mass_every, 1),
            own_shares=bool(policy.own_shares),
            summaries="summaries" in policy.reads,
            side_pass="repeated" in policy.reads,
            text_window=whole("text_window", policy.text_window or 0, 0),
            summarised=bool(policy.summarised),
        )


def whole(name: str, value: Any, least: int) -> int:
    """A count that a policy gave. Raises ValueError if it is none."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number >= {least}")
    return value


def _gathered(names: tuple[str, ...]) -> tuple[str, ...]:
    if not set(names) <= GATHERED:
        raise ValueError(f"gathers is {names!r}; allowed: {', '.join(sorted(GATHERED))}")
    return names


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value

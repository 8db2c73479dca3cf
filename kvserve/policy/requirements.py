"""What a policy asks of the engine, read from it once and checked: later steps take its word from here."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from kvserve.policy import Policy
from kvserve.policy.evidence import (
    Evidence,
    Mass,
    Moments,
    Observed,
    Queries,
    SidePass,
    SummaryTokens,
    checked,
    find,
)


class Asks(NamedTuple):
    """A policy that has failed asks for nothing."""

    evidence: tuple[Evidence, ...] = ()
    query_window: int = 0
    gathers: tuple[str, ...] = ()
    observes: Observed = "prompt"
    mass_every: int = 1
    own_shares: bool = False
    summaries: bool = False
    side_pass: bool = False
    text_window: int = 0
    summarised: bool = True

    @classmethod
    def of(cls, policy: Policy) -> "Asks":
        """Raises TypeError or ValueError for what the engine cannot give, and whatever the policy raises."""
        evidence = checked(f"{type(policy).__name__}.evidence", policy.evidence)
        queries, mass, text = find(Queries, evidence), find(Mass, evidence), find(SummaryTokens, evidence)
        sums = [one for one in (mass, find(Moments, evidence)) if one is not None]
        return cls(
            evidence,
            query_window=queries.last if queries else 0,
            gathers=tuple(one.name for one in sums),
            observes=sums[0].observes if sums else "prompt",
            mass_every=mass.every if mass else 1,
            own_shares=bool(policy.own_shares),
            summaries=text is not None,
            side_pass=find(SidePass, evidence) is not None,
            text_window=text.window or 0 if text else 0,
            summarised=text.made if text else True,
        )


@cache
def foresees(policy: type[Policy]) -> bool:
    """Whether what a policy says of the next length at which a compaction may be due is about its own `due`."""
    order = policy.__mro__
    return order.index(_origin(order, "next_due")) <= order.index(_origin(order, "due"))


def _origin(order: Sequence[type], method: str) -> type:
    return next(cls for cls in order if method in vars(cls))

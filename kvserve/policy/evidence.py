"""What a policy may read of a layer beside its positions. Each kind is a frozen value that a policy declares."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

Observed = Literal["prompt", "all"]  # whose queries count: the prompt's, or those of generated tokens too


@dataclass(frozen=True)
class Evidence:
    """Base of all kinds; `name` stands for a kind in lists, and is the member of the view that gives it."""

    name: ClassVar[str]

    def joined(self, other: Any) -> Any:
        """What serves two policies that declare this and another one of the same kind."""
        return self


class Keys(Evidence):
    """`view.keys`: (H, n, D) float32, after RoPE."""

    name = "keys"


class Values(Evidence):
    """`view.values`: (H, n, D) float32."""

    name = "values"


@dataclass(frozen=True)
class Queries(Evidence):
    """`view.queries`: the last ones of a request, captured as attention runs; `view.per_head` for their attention."""

    name = "queries"
    last: int

    def __post_init__(self) -> None:
        whole("Queries(last)", self.last, 1)

    def joined(self, other: "Queries") -> "Queries":
        return self if self.last >= other.last else other


@dataclass(frozen=True)
class Mass(Evidence):
    """`view.mass`: attention that each slot got, summed over all queries of the prompt, or over all there are.

    every: only each n-th query of the prompt counts, n times: an estimate at an n-th of the cost.
    Such a request computes its whole prompt: a prefix-cache hit would skip queries. So it is with `Moments`.
    """

    name = "mass"
    every: int = 1
    observes: Observed = "prompt"

    def __post_init__(self) -> None:
        whole("Mass(every)", self.every, 1)
        _observed(self)

    def joined(self, other: "Mass") -> "Mass":
        return Mass(min(self.every, other.every), _either(self, other))


@dataclass(frozen=True)
class Moments(Evidence):
    """`view.moments`: count, sum and outer products of the queries before RoPE."""

    name = "moments"
    observes: Observed = "prompt"

    def __post_init__(self) -> None:
        _observed(self)

    def joined(self, other: "Moments") -> "Moments":
        return Moments(_either(self, other))


class Rotation(Evidence):
    """`view.rope`: how queries and keys of the layer were rotated."""

    name = "rope"


class Calibrated(Evidence):
    """`view.calibration`: what `kvserve calibrate` found out about the layer."""

    name = "calibration"


class OutputWeight(Evidence):
    """`view.output_weight()`: (H, G, D, hidden) float32, which turns values into what the layer adds to its input."""

    name = "output_weight"


class SidePass(Evidence):
    """`view.repeated`: (H, n) float32, the most attention that each slot got while the model repeated the prompt."""

    name = "repeated"


@dataclass(frozen=True)
class SummaryTokens(Evidence):
    """`view.summaries`: keys and values that the model makes of chunks of text; text behind the window is not seen.

    window: chunks before a token's own whose text it sees; None: as the model was trained.
    made: whether a summary takes the place of text that leaves the window; else nothing does.
    """

    name = "summaries"
    window: int | None = None
    made: bool = True

    def __post_init__(self) -> None:
        whole("SummaryTokens(window)", 1 if self.window is None else self.window, 1)


KINDS: tuple[type[Evidence], ...] = (
    Keys, Values, Queries, Mass, Moments, Rotation, Calibrated, OutputWeight, SidePass, SummaryTokens,
)  # fmt: skip

Kind = TypeVar("Kind", bound=Evidence)


def find(kind: type[Kind], declared: Iterable[Evidence]) -> Kind | None:
    """The evidence of one kind among what is declared."""
    return next((one for one in declared if isinstance(one, kind)), None)


def merged(*parts: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """What serves several policies, each kind once."""
    found: dict[type[Evidence], Evidence] = {}
    for one in (one for part in parts for one in part):
        known = found.get(type(one))
        found[type(one)] = one if known is None else known.joined(one)
    return tuple(found.values())


def thinned(declared: Iterable[Evidence], every: int) -> tuple[Evidence, ...]:
    """The same with each `every`-th query of the prompt in the attention mass."""
    return tuple(replace(one, every=every) if isinstance(one, Mass) else one for one in declared)


def checked(owner: str, declared: Any) -> tuple[Evidence, ...]:
    """A declaration as the engine uses it. Raises TypeError that names its owner, the value and what is allowed."""
    kinds = ", ".join(kind.__name__ for kind in KINDS)
    if not isinstance(declared, tuple):
        raise TypeError(f"{owner} is {declared!r}; allowed: a tuple of {kinds}")
    for one in declared:
        if type(one) not in KINDS:
            raise TypeError(f"{owner} has {one!r}; allowed: values of the kinds {kinds}, such as Keys() or Queries(32)")
    if len({type(one) for one in declared}) < len(declared):
        raise TypeError(f"{owner} is {declared!r}; allowed: each kind of evidence once")
    if len({one.observes for one in declared if isinstance(one, Mass | Moments)}) > 1:
        raise TypeError(f"{owner} is {declared!r}; allowed: Mass and Moments that observe the same queries")
    return declared


def whole(name: str, value: Any, least: int) -> int:
    """A count that a policy gave. Raises ValueError if it is none."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number >= {least}")
    return value


def _observed(one: Mass | Moments) -> None:
    if one.observes not in ("prompt", "all"):
        raise ValueError(f"{type(one).__name__}(observes) is {one.observes!r}; allowed: prompt, all")


def _either(one: Mass | Moments, other: Mass | Moments) -> Observed:
    return "all" if "all" in (one.observes, other.observes) else "prompt"

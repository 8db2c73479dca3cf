"""What is measured: cells of a table, and the sections that they are grouped in."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

FULL, RANDOM, ORACLE = "full", "random", "oracle"
BRACKETS = (FULL, ORACLE, RANDOM)
TOP = 20
"""Most likely tokens whose log-probabilities are asked for; all others count as one."""


Kind = tuple[str, str, int]
"""What items have in common: task, form, length in tokens."""


class Cell(NamedTuple):
    """One number of the table: a policy at a budget, asked every item of a kind."""

    task: str
    form: str
    length: int
    protocol: str
    policy: str  # label of a contestant
    budget: float  # 1.0 for full


@dataclass(frozen=True)
class Contestant:
    """A policy, perhaps with parameters of its own that every request gets."""

    fields: dict[str, Any] = field(hash=False)

    @classmethod
    def of(cls, text: str) -> "Contestant":
        """From `name` or a JSON object with a name. Raises ValueError."""
        if not text.startswith("{"):
            return cls({"name": text.strip().replace("_", "-")})
        fields = json.loads(text)
        if not isinstance(fields.get("name"), str) or fields.keys() & {"budget", "at"}:
            raise ValueError(f"{text}: a policy needs a name; budget and at come from the table")
        return cls(fields)

    @property
    def name(self) -> str:
        return str(self.fields["name"])

    @property
    def label(self) -> str:
        more = [f"{key}={value}" for key, value in self.fields.items() if key != "name"]
        return " ".join([self.name, *more])


@dataclass(frozen=True)
class Section:
    """A product of tasks, lengths, protocols and budgets."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    protocols: tuple[str, ...]
    budgets: tuple[float, ...]
    forced: int = 0  # also teacher-forced, over this many most likely tokens: NLL, KL and agreement
    forms: tuple[str, ...] = ("completion",)
    generated: bool = True  # false: teacher-forced only

    @property
    def passes(self) -> tuple[bool, ...]:
        """How each item is asked: False is generated, True is teacher-forced."""
        return (False,) * self.generated + (True,) * bool(self.forced)

    def kinds(self) -> Iterator[Kind]:
        """Kinds of items."""
        return (
            (task, form, length)
            for task in self.tasks
            for form in self.forms
            for length in self.lengths
            if (task, form) != ("mqar", "chat")
        )

    def cells(self, kind: Kind, labels: Sequence[str]) -> Iterator[Cell]:
        """Cells of one kind of items; `full` once in each protocol."""
        for protocol in self.protocols:
            for label in labels:
                for budget in (1.0,) if label == FULL else self.budgets:
                    yield Cell(*kind, protocol, label, budget)

    def record(self) -> dict[str, Any]:
        return asdict(self)


SHARES = (0.5, 0.33, 0.25, 0.2, 0.125, 0.1)
QUARTERS = (0.5, 0.25, 0.125)
RETRIEVAL = ("niah_single", "niah_multikey", "niah_multivalue")
SHORT = (
    Section(("niah_single",), (512,), ("inside",), (0.5, 0.25), forms=("chat",)),
    Section(("niah_single",), (512,), ("after",), (0.25,), forms=("chat",)),
    Section(("essay",), (512,), ("inside",), (0.25,), forced=5, generated=False),
)
LONG = (
    Section(
        (*RETRIEVAL, "variable_tracking", "common_words"),
        (1024, 2048, 3072),
        ("inside", "after"),
        QUARTERS,
        forms=("chat",),
    ),
    Section(("essay",), (1024,), ("inside",), QUARTERS, forced=TOP, generated=False),
)
TOY = (
    Section(("niah",), (512,), ("inside",), SHARES),
    Section(("niah",), (512,), ("after",), QUARTERS),
    Section(("chain",), (256,), ("both",), (64, 128)),
    Section(("vt",), (512,), ("inside",), (0.5, 0.25)),
    Section(("niah",), (512,), ("inside",), (0.25,), forced=5),
)

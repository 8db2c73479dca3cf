"""What a claim asks a server, and which servers there are."""

from dataclasses import dataclass

from evals.cells import FULL, RANDOM, Cell, Contestant, Section
from evals.protocols import STREAMING
from models.training.family import FAMILY

CONTROLS = (FULL, RANDOM, STREAMING)


@dataclass(frozen=True)
class ServedModel:
    """A server of one's own: a model of the family, and flags beside those that all have."""

    name: str
    model: str
    flags: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return str(FAMILY[self.model].folder)


MINI = ServedModel("mini", "mini")
MICRO = ServedModel("micro", "micro")
BIASED = ServedModel("biased", "biased")
FP8 = ServedModel("mini, fp8 cache", "mini", ("--kv-cache-dtype", "fp8"))
SERVERS = (MINI, FP8, MICRO, BIASED)


FORCED = 0.3
"""Share of the items that are teacher-forced."""
TRACED = {"chain": 0.5}
"""Share of the items of long answers: a trace is scored line by line and says as much as a dozen answers."""


@dataclass(frozen=True)
class Ask:
    """Some policies at some budgets, always beside the controls."""

    served: ServedModel
    policies: tuple[str, ...]  # names, or JSON objects
    section: Section
    share: float = 1.0  # of the items: some say more each, and cost more

    @property
    def contestants(self) -> list[Contestant]:
        return [Contestant.of(text) for text in (*CONTROLS, *self.policies)]

    def items(self, count: int) -> int:
        return max(1, round(self.share * count))

    def cells(self) -> list[Cell]:
        labels = [each.label for each in self.contestants]
        return [cell for kind in self.section.kinds() for cell in self.section.cells(kind, labels)]


def generated(
    served: ServedModel,
    policies: tuple[str, ...],
    *,
    task: str,
    length: int,
    budgets: tuple[float, ...],
    protocol: str = "inside",
) -> Ask:
    """Every item answered; of long answers, half of them."""
    return Ask(served, policies, Section((task,), (length,), (protocol,), budgets), TRACED.get(task, 1.0))


def forced(
    served: ServedModel, policies: tuple[str, ...], *, task: str, length: int, budgets: tuple[float, ...]
) -> Ask:
    """Some of the items teacher-forced, after a prompt that is compacted at its end."""
    return Ask(served, policies, Section((task,), (length,), ("inside",), budgets, forced=5, generated=False), FORCED)

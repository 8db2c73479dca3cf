"""What a load test has measured: repetitions, what must hold, and what changes over time."""

from loadtests.watch import Sample
from measuring.promise import Promise
from measuring.repetitions import Repetitions


class Measurements(Repetitions):
    """Filled by the scenarios; read by the table, the plots and the JSON at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.checks: list[Promise] = []
        self.course: dict[str, list[Sample]] = {}  # scenario -> the server from its beginning to its end
        self.commands: list[str] = []  # of the load generators, in order
        self.targets: dict[str, float] = {}  # of goodput, ms

    def check(self, part: str, what: str, value: float, limit: float, *, at_most: bool = True) -> None:
        """Something that must hold whatever the machine: missed ones fail the run."""
        self.checks.append(Promise(part, what, value, limit, at_most))

    def by_part(self) -> Repetitions:
        """The same cases, each scenario's together: pools take turns, so they were not measured like that."""
        parts = list(dict.fromkeys(case.part for case in self.cases))
        found = Repetitions()
        found.cases = {case: self.cases[case] for case in sorted(self.cases, key=lambda case: parts.index(case.part))}
        return found

    @property
    def sound(self) -> bool:
        return all(check.kept for check in self.checks)

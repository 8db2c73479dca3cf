"""Something that must hold, and whether what was measured keeps it."""

from typing import Any, NamedTuple


class Promise(NamedTuple):
    """A figure and its limit."""

    part: str
    what: str
    value: float
    limit: float
    at_most: bool

    @property
    def kept(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def record(self) -> dict[str, Any]:
        return {**self._asdict(), "kept": self.kept}

    def line(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "kept" if self.kept else "**missed**"
        return f"- ({self.part}) {self.what}: {self.value:.3g} ({sign} {self.limit:g}: {verdict})"

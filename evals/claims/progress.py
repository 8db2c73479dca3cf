"""What a run has found by itself so far, and how long it took."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.claims.record import Record
from measuring.journal import Journal


class ClaimsJournal(Journal):
    """Beside the table, until that is written."""

    def __init__(self, path: Path) -> None:
        self._looked: dict[str, Record] = {}
        self.seconds, self.parts, self._since = 0.0, 0, time.monotonic()
        super().__init__(path, {})
        self.add({"part": True})

    def take(self, line: dict[str, Any]) -> None:
        self.parts += "part" in line
        self.seconds += line.get("seconds", 0.0)
        if "key" in line:
            self._looked[line["key"]] = line["found"]

    def looked(self, key: str, look: Callable[[], Record]) -> Record:
        """What was found under this key, or is found now."""
        if key not in self._looked:
            found = look()
            self.add({"key": key, "found": found, "seconds": self._passed()})
        return self._looked[key]

    def close(self) -> None:
        """With the time since it was opened."""
        self.add({"seconds": self._passed()})
        super().close()

    def _passed(self) -> float:
        """Since this was asked last."""
        before, self._since = self._since, time.monotonic()
        return self._since - before

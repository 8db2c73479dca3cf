"""What a run has found by itself so far, and how long it took: an interrupted run goes on from here."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from evals.claims.record import Record
from measuring.results import replace


class Kept:
    """A file beside the table, until that is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._since = path, time.monotonic()
        found: Record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._looked: dict[str, Record] = found.get("looked", {})
        self.seconds: float = found.get("seconds", 0.0)
        self.parts: int = found.get("parts", 0) + 1

    def looked(self, key: str, look: Callable[[], Record]) -> Record:
        """What was found under this key, or is found now."""
        if key not in self._looked:
            self._looked[key] = look()
            self.save()
        return self._looked[key]

    def save(self) -> None:
        """With the time since it was saved last."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        replace(self._path, json.dumps({"seconds": self.seconds, "parts": self.parts, "looked": self._looked}))

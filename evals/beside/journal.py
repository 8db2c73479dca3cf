"""What both sides have answered so far, an item and side a line."""

from pathlib import Path
from typing import Any

from measuring.journal import Journal

Key = tuple[str, str, int, str]  # task, protocol, number of the item, side


class SidesJournal(Journal):
    """Entries by key."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.entries: dict[Key, Any] = {}
        super().__init__(path, settings)

    def answered(self, key: Key, found: Any) -> None:
        self.add([key, found])

    def take(self, line: Any) -> None:
        (task, protocol, number, side), found = line
        self.entries[task, protocol, number, side] = found

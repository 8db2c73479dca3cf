"""What has been answered so far, one JSON line per item and side, so that an interrupted run goes on."""

import json
from pathlib import Path
from typing import Any

from evals.book import OtherSettings

Key = tuple[str, str, int, str]  # task, protocol, number of the item, side


class Ledger:
    """Entries by key. The first line of the file is the run's settings; a line that a crash has cut off is dropped."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.entries: dict[Key, Any] = {}
        settings = json.loads(json.dumps(settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read(path, settings) if path.exists() else 0
        self._file = path.open("a")
        self._file.truncate(whole)
        if not whole:
            self._write(settings)

    def _read(self, path: Path, settings: dict[str, Any]) -> int:
        """Load what is there; how many bytes of it are whole lines. Raises OtherSettings."""
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        first, *lines = [json.loads(line) for line in text[:whole].splitlines()] or [settings]
        if first != settings:
            raise OtherSettings(f"{path} holds an unfinished run with other settings; begin anew with --fresh")
        self.entries = {(task, protocol, number, side): found for (task, protocol, number, side), found in lines}
        return whole

    def add(self, key: Key, found: Any) -> None:
        self.entries[key] = found
        self._write([key, found])

    def _write(self, line: Any) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

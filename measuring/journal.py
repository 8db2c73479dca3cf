"""A file of JSON lines that an interrupted run goes on from."""

import json
from pathlib import Path
from typing import Any, Self


class OtherSettings(ValueError):
    """The file holds a run with other settings."""


class Journal:
    """What has been found so far. The first line of the file is the settings that all others were measured with.

    A last line that a crash has cut off is dropped. Raises OtherSettings, and then the file stays as it is.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        whole = text.rfind(b"\n") + 1
        first, *lines = [json.loads(line) for line in text[:whole].splitlines()] or [{"settings": settings}]
        _compare(path, settings, first.get("settings") or {})
        for line in lines:
            self.take(line)
        self._file = path.open("a")
        self._file.truncate(whole)
        if not whole:
            self._write({"settings": settings})

    def take(self, line: Any) -> None:
        """Called for every line that the file has and that is added."""
        raise NotImplementedError

    def add(self, line: Any) -> None:
        self.take(line)
        self._write(line)

    def _write(self, line: Any) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def settings_of(path: Path) -> dict[str, Any]:
    """What the run in a file was started with."""
    with path.open(encoding="utf-8") as lines:
        found: dict[str, Any] = json.loads(next(lines))["settings"]
    return found


def _compare(path: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    if differ := sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)):
        raise OtherSettings(
            f"{path} holds an unfinished run with other settings ({', '.join(differ)}); go on with those, or begin "
            "anew with --fresh"
        )

"""What has been measured so far, one JSON line per answer, so that an interrupted run goes on where it stopped."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from evals.cells import Cell
from evals.forced import Forced


class OtherSettings(ValueError):
    """The file holds a run with other settings."""


class Book:
    """Results by cell and item. The first line of the file is the settings that all others were measured with.

    A last line that a crash has cut off is dropped.
    """

    def __init__(self, path: Path, settings: dict[str, Any], about: dict[str, Any]) -> None:
        self.scores: dict[Cell, dict[int, tuple[float, float, float]]] = defaultdict(dict)  # score, kept, bytes
        self.forced: dict[Cell, dict[int, Forced]] = defaultdict(dict)
        self.refused: dict[Cell, str] = {}
        self.sessions: list[dict[str, Any]] = []
        self._path = path
        settings = json.loads(json.dumps(settings))
        whole = self._read(settings) if path.exists() else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a" if whole else "w")
        self._file.truncate(whole)
        if not whole:
            self._write({"settings": settings})
        self._write({"session": about})
        self.sessions.append(about)

    def _read(self, settings: dict[str, Any]) -> int:
        """Load what is there; how many bytes of it are whole lines. Raises OtherSettings."""
        text = self._path.read_bytes()
        whole = text.rfind(b"\n") + 1
        lines = [json.loads(line) for line in text[:whole].splitlines()]
        if lines and (found := lines[0].get("settings")) != settings:
            differ = [k for k in settings.keys() | (found or {}).keys() if settings.get(k) != (found or {}).get(k)]
            raise OtherSettings(
                f"{self._path} holds an unfinished run with other settings ({', '.join(sorted(differ))}); go on with "
                "those, or begin anew with --fresh"
            )
        for line in lines[1:]:
            self._take(line)
        return whole

    def _take(self, line: dict[str, Any]) -> None:
        if "session" in line:
            self.sessions.append(line["session"])
            return
        cell = Cell(*line["cell"])
        if "refused" in line:
            self.refused[cell] = line["refused"]
        if "score" in line:
            self.scores[cell][line["item"]] = (line["score"], line["kept"], line["bytes"])
        if "forced" in line:
            self.forced[cell][line["item"]] = Forced(*line["forced"])

    def has(self, cell: Cell, item: int, forced: bool) -> bool:
        """Whether there is nothing left to ask."""
        return cell in self.refused or item in (self.forced if forced else self.scores).get(cell, ())

    def score(self, cell: Cell, item: int, score: float, kept: float, held: float) -> None:
        line = {"cell": cell, "item": item, "score": score, "kept": round(kept, 5), "bytes": round(held, 5)}
        self._add(line)

    def force(self, cell: Cell, item: int, forced: Forced) -> None:
        self._add({"cell": cell, "item": item, "forced": [round(value, 6) for value in forced]})

    def refuse(self, cell: Cell, why: str) -> None:
        """The server cannot run this cell; once is enough."""
        if cell not in self.refused:
            self._add({"cell": cell, "refused": why})

    def _add(self, line: dict[str, Any]) -> None:
        self._take(line)
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

"""What has been measured so far, an answer a line."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from evals.cells import Cell
from evals.forced import Forced
from measuring.journal import Journal


class EvalJournal(Journal):
    """Results by cell and item."""

    def __init__(self, path: Path, settings: dict[str, Any], about: dict[str, Any]) -> None:
        self.scores: dict[Cell, dict[int, tuple[float, float, float]]] = defaultdict(dict)  # score, kept, bytes
        self.forced: dict[Cell, dict[int, Forced]] = defaultdict(dict)
        self.refused: dict[Cell, str] = {}
        self.sessions: list[dict[str, Any]] = []
        super().__init__(path, settings)
        self.add({"session": about})

    def take(self, line: dict[str, Any]) -> None:
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
        self.add({"cell": cell, "item": item, "score": score, "kept": round(kept, 5), "bytes": round(held, 5)})

    def force(self, cell: Cell, item: int, forced: Forced) -> None:
        self.add({"cell": cell, "item": item, "forced": [round(value, 6) for value in forced]})

    def refuse(self, cell: Cell, why: str) -> None:
        """The server cannot run this cell; once is enough."""
        if cell not in self.refused:
            self.add({"cell": cell, "refused": why})

"""A run goes on from what its file has, and not with other settings."""

from pathlib import Path
from typing import Any

import pytest

from measuring.journal import Journal, OtherSettings, settings_of


class Numbers(Journal):
    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.found: list[int] = []
        super().__init__(path, settings)

    def take(self, line: int) -> None:
        self.found.append(line)


def test_it_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.jsonl"
    with Numbers(path, {"budgets": (0.5, 64)}) as run:
        run.add(1)
        run.add(2)
    with path.open("a") as file:
        file.write("[3")
    with Numbers(path, {"budgets": (0.5, 64)}) as run:
        assert run.found == [1, 2]
        run.add(4)
    assert path.read_text().splitlines()[1:] == ["1", "2", "4"]
    assert settings_of(path) == {"budgets": [0.5, 64]}


def test_other_settings_are_named_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Numbers(path, {"seed": 0, "items": 4}).close()
    before = path.read_text()
    with pytest.raises(OtherSettings, match=r"other settings \(items, model\); go on with those, or begin .* --fresh"):
        Numbers(path, {"seed": 0, "items": 5, "model": "x"})
    assert path.read_text() == before

"""Curves from the record, and the files."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

from loadtests.plots import apart, crossover, draw, figures


def _cell(tokens: float, goodput: float) -> dict[str, Any]:
    return {"tokens_per_s": {"raw": [tokens], "median": tokens}, "goodput": {"raw": [goodput], "median": goodput}}


CELLS = {
    "full @ 100 %": _cell(500, 2),
    "streaming:512 @ 100 %": _cell(600, 2.5),
    "full @ 37.5 %": _cell(300, 0.1),
    "streaming:512 @ 37.5 %": _cell(550, 2),
}
COURSE = [
    {"seconds": n / 2, "running": 3, "resident_bytes": n << 20, "api_rss": 9 << 26, "engine_rss": 9 << 27}
    for n in range(20)
]


def _record(cells: dict[str, Any], course: list[dict[str, Any]]) -> dict[str, Any]:
    load = {"clients": 12, "prompt": 2048, "output": 192}
    return {"parts": {"crossover": cells}, "course": {"soak": course}, "sizes": {"crossover": load}}


def test_a_curve_has_a_point_per_pool() -> None:
    curves = crossover(CELLS)
    assert {policy: list(points) for policy, points in curves.items()} == {
        "full": [100, 37.5],
        "streaming:512": [100, 37.5],
    }
    assert curves["streaming:512"][37.5] == {"tokens_per_s": 550, "goodput": 2}


def test_plots_are_written_as_png(tmp_path: Path) -> None:
    made = draw(_record(CELLS, COURSE), tmp_path / "loadtest.json")
    assert [path.name for path in made] == ["loadtest-crossover.png", "loadtest-soak.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_plots_have_every_name() -> None:
    curves, soak = ({each.get_text() for each in figure.findobj(Text)} for _, figure in figures(_record(CELLS, COURSE)))
    assert {"full", "streaming", "budget 512", "tokens/s", "37.5"} <= curves
    assert {"engine", "HTTP side"} <= soak


def test_the_same_record_gives_the_same_picture(tmp_path: Path) -> None:
    first, second = (draw(_record(CELLS, []), tmp_path / name)[0].read_bytes() for name in ("a.json", "b.json"))
    assert first == second


def test_what_was_not_measured_has_no_plot(tmp_path: Path) -> None:
    one_pool = {case: cell for case, cell in CELLS.items() if "100" in case}
    assert draw(_record(one_pool, []), tmp_path / "loadtest.json") == []


def test_names_that_would_overlap_move_apart_and_stay_in_order() -> None:
    placed = apart([10.0, 10.5, 50.0], least=5)
    assert sorted(placed) == placed
    assert placed[1] - placed[0] == pytest.approx(5)
    assert apart([3.0, 1.0, 2.0], least=0.5) == [3, 1, 2]

"""Statistics and records."""

import pytest

from measuring.repetitions import Repetitions
from measuring.spread import Spread, paired_ratio


def test_spread_is_the_median_and_the_inclusive_quartiles() -> None:
    assert Spread.of([5, 1, 3, 2, 4]) == (3, 2, 4)


def test_a_single_repetition_is_its_own_spread() -> None:
    assert Spread.of([7.0]) == (7, 7, 7)


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_paired_ratios_cancel_what_disturbs_both() -> None:
    quiet, busy = 1.0, 5.0
    assert paired_ratio([1.1 * quiet, 1.1 * busy, 1.1 * quiet], [quiet, busy, quiet]) == pytest.approx(1.1)


def test_paired_ratios_need_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [1.0, 2.0])


def test_the_book_keeps_every_repetition_in_order() -> None:
    book = Repetitions()
    for value in (3.0, 1.0, 2.0):
        book.add("a", "stock", step_ms=value)
    assert book.raw("a", "stock", "step_ms") == [3, 1, 2]
    assert book.median("a", "stock", "step_ms") == 2
    assert book.record()["a"]["stock"]["step_ms"] == {"raw": [3, 1, 2], "median": 2, "q1": 1.5, "q3": 2.5}


def test_what_was_not_measured_is_absent() -> None:
    assert Repetitions().median("b", "full @ 1024", "ratio") is None
    assert Repetitions().names("b") == []


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Repetitions().add("d", "streaming:512", plan_ms=1.25)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "(d) streaming:512: plan_ms 1.25\n"

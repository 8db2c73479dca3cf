"""The leak check's arithmetic."""

import pytest

from loadtests.soak import busy, grown
from loadtests.watch import Sample
from measuring.server import Memory


def _samples(*running: int) -> list[Sample]:
    return [Sample(float(n), now, 0, Memory(n, n)) for n, now in enumerate(running)]


def test_growth_is_counted_from_the_middle_to_the_end() -> None:
    rises_early = [100.0] * 10 + [200.0] * 90
    assert grown(rises_early) == 0
    rises_late = [100.0] * 90 + [110.0] * 10
    assert grown(rises_late) == pytest.approx(0.1)


def test_one_peak_is_no_growth() -> None:
    assert grown([100.0] * 95 + [500.0] + [100.0] * 4) == 0


def test_a_steady_leak_is_found() -> None:
    assert grown([1000.0 + n for n in range(100)]) == pytest.approx(45 / 1049.5)


def test_a_shrinking_process_has_negative_growth() -> None:
    assert grown([100.0, 100.0, 50.0]) == pytest.approx(-0.5)


def test_only_the_time_under_load_counts() -> None:
    assert [sample.seconds for sample in busy(_samples(0, 0, 1, 0, 2, 0))] == [2, 3, 4]


def test_a_server_that_was_never_seen_at_work_proves_nothing() -> None:
    assert busy(_samples(0, 0)) == []
    with pytest.raises(ValueError, match="never seen at work"):
        grown([])

"""Who used the processor."""

import time

from loadtests.cpu_time import Spent


def test_what_was_busy_and_not_ours_was_others() -> None:
    before = Spent(all=100.0, busy=50.0, ours=20.0)
    assert Spent(all=120.0, busy=66.0, ours=30.0).others(before) == (16 - 10) / 20


def test_clocks_that_disagree_a_little_give_nobody_negative_time() -> None:
    before = Spent(all=100.0, busy=50.0, ours=20.0)
    assert Spent(all=101.0, busy=50.9, ours=21.0).others(before) == 0
    assert before.others(before) == 0


def test_our_own_work_is_ours() -> None:
    before, end = Spent.now(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = Spent.now()
    assert 0.25 <= after.ours - before.ours <= after.busy - before.busy + 0.1

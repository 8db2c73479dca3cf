"""What an engine does inside while it is measured: seconds of its compactions, and preemptions."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.engine import BenchEngine


class HeldBytes:
    """Seconds spent since the last look."""

    def __init__(self) -> None:
        self.runs: list[float] = []  # of each plan in the worker
        self.planning = 0.0  # in the scheduler
        self.preempted = 0  # requests that lost their blocks to others

    def ran(self, seconds: float) -> None:
        self.runs.append(seconds)

    def planned(self, seconds: float) -> None:
        self.planning += seconds

    def lost(self, _: float) -> None:
        self.preempted += 1

    @property
    def seconds(self) -> float:
        return sum(self.runs) + self.planning

    def take(self) -> "HeldBytes":
        taken = HeldBytes()
        vars(taken).update(vars(self))
        vars(self).update(vars(HeldBytes()))
        return taken


@contextmanager
def watched(engine: BenchEngine) -> Iterator[HeldBytes]:
    """Watch an engine of kvserve while inside."""
    watch, compactor, scheduler = HeldBytes(), engine.compactor, engine.scheduler
    planner = scheduler.kv_planner
    compactor.run = timed(compactor.run, watch.ran)
    planner.plans = timed(planner.plans, watch.planned)
    scheduler._preempt_request = timed(scheduler._preempt_request, watch.lost)
    try:
        yield watch
    finally:
        del compactor.run, planner.plans, scheduler._preempt_request


def timed(function: Callable[..., Any], note: Callable[[float], None]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        note(time.perf_counter() - started)
        return result

    return timed

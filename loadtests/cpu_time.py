"""Whose CPU time it was: on a shared machine the neighbours are part of every figure."""

import os
from typing import NamedTuple

import psutil


class Spent(NamedTuple):
    """Seconds of CPU time so far."""

    all: float  # of all cores, idle or not
    busy: float
    ours: float  # of this process, the server and the generators

    @classmethod
    def now(cls) -> "Spent":
        cores, this = psutil.cpu_times(), psutil.Process(os.getpid())
        ours = sum(_seconds(process) for process in (this, *this.children(recursive=True)))
        return cls(sum(cores), sum(cores) - cores.idle - getattr(cores, "iowait", 0.0), ours)

    def others(self, before: "Spent") -> float:
        """Share of the CPU time since `before` that went to others."""
        spent = self.all - before.all
        return max(0.0, self.busy - before.busy - (self.ours - before.ours)) / spent if spent else 0.0


def _seconds(process: psutil.Process) -> float:
    """With its children that have ended; 0 if it has just ended itself."""
    try:
        return sum(process.cpu_times()[:4])  # user, system, and both of the children
    except psutil.NoSuchProcess:
        return 0.0

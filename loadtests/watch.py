"""What a server says of itself while it is under load, sampled in a thread."""

import threading
import time
from types import TracebackType
from typing import NamedTuple

from loadtests.cpu_time import Spent
from measuring.server import Memory, Server, ServerDied


class Sample(NamedTuple):
    """One look at the server."""

    seconds: float  # since the watch began
    running: int  # requests
    resident: int  # bytes of their KV blocks
    memory: Memory


class Watch:
    """`with Watch(server) as watch:` samples every `interval` seconds until the block ends."""

    def __init__(self, server: Server, interval: float = 0.2) -> None:
        self.samples: list[Sample] = []
        self._server, self._interval = server, interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.others = 0.0  # share of the machine's CPU time that went to processes which are not ours

    @property
    def at_once(self) -> int:
        """Most requests that ran at the same time. The server takes a look every 0.25 s: short ones may be missed."""
        return max((sample.running for sample in self.samples), default=0)

    def __enter__(self) -> "Watch":
        self._before = Spent.now()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self.others = Spent.now().others(self._before)

    def _look(self) -> None:
        started = time.monotonic()
        while not self._done.wait(self._interval):
            try:
                stats = self._server.stats()
                memory = self._server.memory()
            except ServerDied:
                return  # whoever waits for the generators will notice, and say so with the server's log
            passed = time.monotonic() - started
            self.samples.append(Sample(passed, stats["requests_running"], stats["resident_bytes"], memory))

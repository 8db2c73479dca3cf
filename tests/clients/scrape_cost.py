"""What scrapes cost: `python -m tests.clients.scrape_cost` prints tokens/s with and without one every 0.2 s."""

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.clients.conftest import COMMAND
from tests.clients.load import POLICIES, PROMPT
from tests.server.running import Server, serving

PAUSE = 0.2  # seconds; Prometheus scrapes every 15 by default
ROUNDS = 10
TOKENS = 800


@contextmanager
def scraped(server: Server, seconds: list[float]) -> Iterator[None]:
    """A scrape every PAUSE, on one kept connection as Prometheus does it; how long each took goes into `seconds`."""
    over = threading.Event()

    def scrape() -> None:
        with httpx.Client(base_url=server.url) as client:
            while not over.wait(PAUSE):
                start = time.monotonic()
                client.get("/metrics").raise_for_status()
                seconds.append(time.monotonic() - start)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def speed(server: Server) -> float:
    """Tokens/s of one request for each of POLICIES, all at once."""
    start = time.monotonic()
    with ThreadPoolExecutor(len(POLICIES)) as pool:
        list(pool.map(lambda policy: server.complete(PROMPT, policy, max_tokens=TOKENS), POLICIES))
    return len(POLICIES) * TOKENS / (time.monotonic() - start)


def measure() -> None:
    """Pairs of rounds, each pair in the other order than the one before, so that a drift falls on both."""
    ratios, seconds = [], list[float]()
    with serving(Path(tempfile.mkdtemp()) / "log", COMMAND) as server:
        speed(server)
        for number in range(ROUNDS):
            found = {}
            for with_scrapes in (True, False) if number % 2 else (False, True):
                if with_scrapes:
                    with scraped(server, seconds):
                        found[True] = speed(server)
                else:
                    found[False] = speed(server)
            ratios.append(found[True] / found[False])
            print(f"{found[False]:7.1f} tokens/s without, {found[True]:7.1f} with: {ratios[-1]:.4f}", flush=True)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ratio: median {middle:.4f}, quartiles {low:.4f} to {high:.4f}, {ROUNDS} pairs")
    print(f"a scrape took {statistics.median(seconds) * 1000:.1f} ms (median of {len(seconds)})")


if __name__ == "__main__":
    measure()

"""What scrapes cost: `python -m tests.clients.scrape_cost` prints tokens/s with one every 0.2 s and without.

`--stock` asks plain vLLM, whose own series are most of what is scraped.
"""

import argparse
import http.client
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from server.cli import embedded
from tests.clients.conftest import COMMAND
from tests.clients.load import POLICIES, PROMPT
from tests.server.running import MODEL, ServerUnderTest, serving

STOCK = "python -m vllm.entrypoints.launchers.api_server.entry --host 127.0.0.1 --max-model-len 4096".split()
STOCK += ["--model", str(embedded.folder()), "--served-model-name", MODEL]
TOKENS = 800


@contextmanager
def scraped(server: ServerUnderTest, every: float, seconds: list[float]) -> Iterator[None]:
    """Scrapes on one kept connection, as Prometheus does it, by a client that only reads: it shares the machine."""
    over = threading.Event()

    def scrape() -> None:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        while not over.wait(every):
            start = time.monotonic()
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            assert answer.read() and answer.status == 200
            seconds.append(time.monotonic() - start)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def speed(server: ServerUnderTest, policies: tuple[str | None, ...]) -> float:
    """Tokens/s of one request for each of them, all at once."""
    start = time.monotonic()
    with ThreadPoolExecutor(len(policies)) as pool:
        list(pool.map(lambda policy: server.complete(PROMPT, policy, max_tokens=TOKENS), policies))
    return len(policies) * TOKENS / (time.monotonic() - start)


def pair(
    server: ServerUnderTest, policies: tuple[str | None, ...], every: float, first: bool, seconds: list[float]
) -> float:
    """Speed with scrapes over speed without, which of them is measured `first`."""
    found = {}
    for with_scrapes in (first, not first):
        if with_scrapes:
            with scraped(server, every, seconds):
                found[True] = speed(server, policies)
        else:
            found[False] = speed(server, policies)
    print(
        f"{found[False]:7.1f} tokens/s without, {found[True]:7.1f} with: {found[True] / found[False]:.4f}", flush=True
    )
    return found[True] / found[False]


def measure(every: float, pairs: int, stock: bool) -> None:
    """Each pair in the other order than the one before, so that a drift falls on both."""
    policies = tuple(None for _ in POLICIES) if stock else POLICIES
    seconds: list[float] = []
    with serving(Path(tempfile.mkdtemp()) / "log", STOCK if stock else COMMAND) as server:
        speed(server, policies)
        ratios = [pair(server, policies, every, number % 2 == 1, seconds) for number in range(pairs)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ratio: median {middle:.4f}, quartiles {low:.4f} to {high:.4f}, {pairs} pairs, a scrape every {every} s")
    print(f"a scrape took {statistics.median(seconds) * 1000:.1f} ms (median of {len(seconds)})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=float, default=0.2, help="seconds between scrapes (Prometheus: 15)")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--stock", action="store_true")
    measure(**vars(parser.parse_args()))

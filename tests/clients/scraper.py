"""Someone who reads /metrics all the time and notes every answer."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Scrape(NamedTuple):
    """One attempt; `status` is None where nobody answered, `problem` is what is wrong with an answer."""

    at: float  # time.monotonic()
    status: int | None
    problem: str | None
    seconds: float


class Scraper:
    """Filled by a thread of its own until `stop`."""

    def __init__(self, url: str, pause: float) -> None:
        self.scrapes: list[Scrape] = []
        self._pause = pause
        self._client = httpx.Client(base_url=url, timeout=30)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(40)
        assert not self._thread.is_alive(), "a scrape hangs"

    @property
    def answers(self) -> list[Scrape]:
        return [scrape for scrape in self.scrapes if scrape.status is not None]

    @property
    def unfit(self) -> list[Scrape]:
        """Answers that a Prometheus could not use."""
        return [scrape for scrape in self.answers if scrape.status != 200 or scrape.problem is not None]

    def _run(self) -> None:
        while not self._over.wait(self._pause):
            self.scrapes.append(self._scrape())

    def _scrape(self) -> Scrape:
        """A new connection each time: one that is kept may be closed at any time, and that says nothing."""
        start, status, problem = time.monotonic(), None, None
        try:
            with self._client.stream("GET", "/metrics", headers={"Connection": "close"}) as response:
                status = response.status_code
                problem = wrong_with(response.read().decode())
        except httpx.TransportError as error:
            problem = f"no whole answer: {error!r}"
        except ValueError as error:
            problem = f"not text for Prometheus: {error!r}"
        return Scrape(start, status, problem, time.monotonic() - start)


def wrong_with(text: str) -> str | None:
    """Raises ValueError for what is no exposition format at all."""
    names = {family.name for family in text_string_to_metric_families(text)}
    missing = {"kvserve_build", "vllm:num_requests_running"} - {name.removesuffix("_info") for name in names}
    return f"without {sorted(missing)}" if missing or not text.endswith("\n") else None


@contextmanager
def scraping(url: str, pause: float = 0.02) -> Iterator[Scraper]:
    scraper = Scraper(url, pause)
    try:
        yield scraper
    finally:
        scraper.stop()

"""Scrapes of a server that starts, and of one under load. Of one that ends: test_shutdown; their cost: scrape_cost."""

from tests.clients.conftest import RunningServer
from tests.clients.load import streams
from tests.clients.scraper import scraping
from tests.server.running import ServerUnderTest

SECONDS = 60.0
TOKENS = 2000
"""Of an answer: some seconds, in which there are scrapes enough on a busy machine as well."""


def test_scrapes_during_the_start(running: RunningServer) -> None:
    """Refused until the engine is ready, which is when vLLM opens the port; from then on answered."""
    scrapes = running.start.scrapes
    first = scrapes.index(running.start.answers[0])
    assert first > 10
    assert all("Connection refused" in str(scrape.problem) for scrape in scrapes[:first])
    assert all(scrape.status == 200 for scrape in scrapes[first:])
    assert running.start.unfit == []


def test_every_scrape_under_load_is_answered_whole(server: ServerUnderTest) -> None:
    before = server.metric("vllm:generation_tokens_total")
    with scraping(server.url) as scraper:
        running = streams(server, tokens=TOKENS)
        assert all(stream.ended(SECONDS) for stream in running)
    assert [stream.end for stream in running] == ["length"] * len(running)
    assert server.metric("vllm:generation_tokens_total") == before + TOKENS * len(running)
    assert len(scraper.answers) == len(scraper.scrapes) > 10
    assert scraper.unfit == []

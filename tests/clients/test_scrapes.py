"""Scrapes under load are all answered. While a server starts and ends: test_endings; what they cost: scrape_cost."""

from tests.clients.load import streams
from tests.clients.scraper import scraping
from tests.server.running import Server

SECONDS = 60.0


def test_every_scrape_under_load_is_answered_whole(server: Server) -> None:
    before = server.metric("vllm:generation_tokens_total")
    with scraping(server.url) as scraper:
        running = streams(server, tokens=300)
        assert all(stream.ended(SECONDS) for stream in running)
    assert [stream.end for stream in running] == ["length"] * len(running)
    assert server.metric("vllm:generation_tokens_total") == before + 300 * len(running)
    assert len(scraper.answers) == len(scraper.scrapes) > 10
    assert scraper.unfit == []

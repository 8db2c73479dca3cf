"""One real server under load, watched by one real Prometheus where there is one."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy import traffic
from tests.deploy.binaries import MissingBinary
from tests.deploy.scraping import Prometheus, scraping
from tests.engine import raising
from tests.server.running import ServerUnderTest, serving

LOAD_SECONDS = 20.0
IDLE_SECONDS = 5.0  # for the canary, which judges when there is no load, and for a last scrape
BLOCKS = 60  # of 128 tokens: five of the requests without compression


@dataclass(frozen=True)
class Observed:
    """What the server said at the end of the load, and the Prometheus that saw it come, or why there is none."""

    labels: dict[str, set[str]]  # by name of a sample
    start: float
    end: float
    prometheus: Prometheus | None
    why_not: str

    def asked(self) -> Prometheus:
        if self.prometheus is None:
            pytest.skip(self.why_not)
        return self.prometheus


@pytest.fixture(scope="package")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    pytest.importorskip("vllm")
    command = ["kvserve", "serve", "mini", "--max-model-len", "2048", "--num-gpu-blocks-override", str(BLOCKS)]
    command += ["--kv-canary", "1.0"]
    more = {"PYTHONPATH": raising.plugin(tmp_path_factory.mktemp("site"))}
    with serving(tmp_path_factory.mktemp("server") / "log", command, more) as server, ExitStack() as stack:
        prometheus, why_not = None, ""
        try:
            address = server.url.removeprefix("http://")
            prometheus = stack.enter_context(scraping(tmp_path_factory.mktemp("prometheus"), address))
        except MissingBinary as missing:
            why_not = str(missing)
        start = time.time()
        traffic.drive(server, LOAD_SECONDS)
        time.sleep(IDLE_SECONDS)
        yield Observed(_labels(server), start, time.time(), prometheus, why_not)


def _labels(server: ServerUnderTest) -> dict[str, set[str]]:
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}

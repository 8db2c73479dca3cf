"""A real Prometheus with the configuration that is shipped, but for its targets and how often it looks."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy import binaries

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus"
START_SECONDS = 30.0


class Prometheus:
    """Its HTTP API. Raises AssertionError with Prometheus' own words where it refuses."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/api/v1", timeout=30)

    def get(self, path: str, **parameters: Any) -> Any:
        response = self.http.get(path, params=parameters)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # it listens before it is ready
            response.raise_for_status()
        answer = response.json()
        assert answer["status"] == "success", f"{answer.get('error')}: {parameters}"
        return answer["data"]

    def values(self, expr: str, start: float, end: float) -> list[float]:
        """All values of all series of an expression, second by second."""
        series = self.get("/query_range", query=expr, start=start, end=end, step=1)["result"]
        return [float(value) for one in series for _, value in one["values"]]

    def labels(self, name: str, selector: str) -> list[str]:
        """Grafana's label_values(selector, name)."""
        found: list[str] = self.get(f"/label/{name}/values", **{"match[]": selector})
        return found

    def targets(self) -> list[str]:
        return [target["health"] for target in self.get("/targets")["activeTargets"]]


@contextmanager
def scraping(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrapes `target` (host:port) every second until the end. Raises binaries.MissingBinary."""
    programs = binaries.folder()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [programs / "prometheus", f"--config.file={_configured(folder, target)}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder / 'data'}"]
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder)
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        _wait_until_scraped(prometheus, process, log)
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def _configured(folder: Path, target: str) -> Path:
    config = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _wait_until_scraped(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if prometheus.targets() == ["up"]:
                return
        except (httpx.TransportError, httpx.HTTPStatusError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"Prometheus did not scrape the server:\n{log.read_text()[-4000:]}")

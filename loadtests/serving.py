"""A `kvserve serve` process with a pool of a chosen size, and what it says of itself."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.sizes import BLOCK

MODEL = "kvserve-mini"
START_SECONDS = 600.0
"""About 25 on an idle machine."""

FLAGS = ["--enforce-eager", "--block-size", str(BLOCK)]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # the other core is for the HTTP side and the load generators
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}


class ServerDied(RuntimeError):
    """It did not start, or ended while it was under load; the message has the errors from its log."""


class Memory(NamedTuple):
    """Resident bytes of the server's processes."""

    api: int  # the HTTP side
    engine: int  # scheduler and worker


class Server:
    """One running server."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.url, self._process, self._log = url, process, log
        self._http = httpx.Client(base_url=url, timeout=60)

    def stats(self) -> dict[str, Any]:
        """What `GET /v1/kv/stats` answers."""
        found: dict[str, Any] = self._get("/v1/kv/stats").json()
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; 0 if there is none."""
        families = text_string_to_metric_families(self._get("/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def ended(self, **labels: str) -> int:
        """Requests that have ended, of all policies or of `policy=`, as Prometheus sees them."""
        return int(self.metric("kvserve_requests_total", **labels))

    def wait_until_empty(self, seconds: float = 30.0) -> float:
        """Until no request runs or waits; how long that took. Gives up after `seconds`."""
        return wait(self.empty, seconds)

    def empty(self) -> bool:
        stats = self.stats()
        return not stats["requests_running"] and not stats["requests_waiting"]

    def memory(self) -> Memory:
        api = psutil.Process(self._process.pid)
        return Memory(api.memory_info().rss, sum(child.memory_info().rss for child in api.children(recursive=True)))

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._http.get(path).raise_for_status()
        except httpx.HTTPError as error:
            raise ServerDied(f"{self.url}{path}: {error}; the server's log ends:\n{self.last_words()}") from error

    def last_words(self) -> str:
        """The errors in its log, each once, and its end."""
        text = self._log.read_text(errors="replace")
        errors = dict.fromkeys(line for line in text.splitlines() if "Error: " in line)
        return "\n".join([*errors, "...", text[-1000:]])


def wait(condition: Callable[[], bool], seconds: float) -> float:
    """Until it holds, or `seconds` are over; how long that took."""
    started = time.monotonic()
    while not condition() and time.monotonic() - started < seconds:
        time.sleep(0.05)
    return time.monotonic() - started


@contextmanager
def serving(pool: int, longest: int, log: Path) -> Iterator[Server]:
    """A server of the embedded model with `pool` usable blocks, once it is healthy. Raises ServerDied.

    longest: tokens that it accepts per request.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sizes = ["--max-model-len", str(longest), "--num-gpu-blocks-override", str(pool + 1)]  # one is vLLM's null block
    command = [sys.executable, "-m", "server.cli.main", "serve", "--port", str(port), *FLAGS, *sizes]
    # In a session of its own: Ctrl-C is for us to handle, the server ends when we are done.
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**ENVIRONMENT, **os.environ}, start_new_session=True
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", process, log)
        _wait_until_healthy(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_healthy(server: Server, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise ServerDied(f"the server did not start (exit code {process.poll()}):\n{server.last_words()}")

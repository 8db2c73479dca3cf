"""A server in a process of its own, and what it says of itself."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 600.0
"""About 25 on an idle machine."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # other cores are for the HTTP side and for who asks
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
"""Defaults of a server; what the caller has set stays."""


class ServerDied(RuntimeError):
    """It did not start, or ended while it was asked; the message has the errors from its log."""


class Memory(NamedTuple):
    """Resident bytes of the server's processes."""

    api: int  # the HTTP side
    engine: int  # scheduler and worker


class Server:
    """One server, from before it is healthy."""

    def __init__(
        self, url: str, process: "subprocess.Popen[bytes]", log: Path, headers: Mapping[str, str] | None = None
    ) -> None:
        self.url, self.process, self._log = url, process, log
        # The server closes idle connections after five seconds, as httpx would: sooner here, or both may meet.
        limits = httpx.Limits(keepalive_expiry=1.0)
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, limits=limits)

    def wait_until_healthy(self) -> None:
        """Raises ServerDied if it ends, or does not answer in time."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if self.http.get("/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.3)
        raise ServerDied(f"the server did not start (exit code {self.process.poll()}):\n{self.last_words()}")

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
        api = psutil.Process(self.process.pid)
        return Memory(api.memory_info().rss, sum(child.memory_info().rss for child in api.children(recursive=True)))

    def _get(self, path: str) -> httpx.Response:
        try:
            return self.http.get(path).raise_for_status()
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
def serving(flags: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> Iterator[Server]:
    """`kvserve serve` with these flags, once it is healthy. environ: beside ours. Raises ServerDied."""
    command = [sys.executable, "-m", "server.cli.main", "serve", *flags]
    with launched(command, log, {**ENVIRONMENT, **os.environ, **(environ or {})}) as (url, process):
        server = Server(url, process, log)
        server.wait_until_healthy()
        yield server


@contextmanager
def launched(
    command: Sequence[str], log: Path, environ: Mapping[str, str]
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Base address and process of a command with --port of a free port added; ended when the block is left."""
    port = free_port()
    # In a session of its own: Ctrl-C is for us to handle, the server ends when we are done.
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=out, stderr=out, env=dict(environ), start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

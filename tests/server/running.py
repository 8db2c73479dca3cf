"""A real server in a process of its own, and how tests talk to it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from kvserve.stats import Outcome

KEY = "test-key"
MODEL = "kvserve-mini"
START_SECONDS = 300.0  # about 30 on an idle machine
FIELDS = set(Outcome.__dataclass_fields__) - {"granularity"}
"""Of usage.kv_cache; granularity is said where layers had to share a budget only."""


class Server:
    """Base address, the official client, and what the server says of itself."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def complete(self, prompt: Any, policy: Any = None, **more: Any) -> Any:
        """A greedy completion that does not stop by itself."""
        extra = {"ignore_eos": True, **({"kv_policy": policy} if policy is not None else {})}
        extra |= more.pop("extra_body", {})
        return self.client.completions.create(
            **{"model": MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0, "extra_body": extra, **more}
        )

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/v1/kv/stats").json()
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; 0 if there is none yet."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Poll: statistics reach the API process a moment after the answer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


@contextmanager
def serving(log: Path, command: list[str], more: dict[str, str] | None = None) -> Iterator[Server]:
    """`launched`, once it is healthy."""
    with launched(log, command, more) as (server, process):
        wait_until_healthy(server, process, log)
        yield server


@contextmanager
def launched(
    log: Path, command: list[str], more: dict[str, str] | None = None
) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """Run a console script of this environment with --port and --api-key added, in a process group of its own.

    more: environment variables.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = str(Path(sys.executable).parent / command[0])
    flags = ["--port", str(port), "--api-key", KEY, "--enforce-eager", "--dtype", "float32"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", **(more or {})}
    with log.open("w") as out:
        process = subprocess.Popen([script, *command[1:], *flags], stdout=out, stderr=out, env=environ, process_group=0)
    try:
        yield Server(port), process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_healthy(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if server.http.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not start (exit code {process.poll()}):\n{log.read_text()[-4000:]}")

"""A real server in a process of its own, and how tests talk to it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import openai

from kvserve.stats import Outcome
from measuring import server

KEY = "test-key"
FORKING = Path(__file__).parents[1] / "forking"
MODEL = "kvserve-mini"
FIELDS = {field.name for field in fields(Outcome) if field.default is MISSING}
"""Of usage.kv_cache, those that are always there: neither what layers had to share, nor what was drafted."""


class ServerUnderTest(server.Server):
    """Base address, the official client, and what the server says of itself."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        super().__init__(url, process, log, {"Authorization": f"Bearer {KEY}"})
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def complete(self, prompt: Any, policy: Any = None, **more: Any) -> Any:
        """A greedy completion that does not stop by itself."""
        extra = {"ignore_eos": True, **({"kv_policy": policy} if policy is not None else {})}
        extra |= more.pop("extra_body", {})
        return self.client.completions.create(
            **{"model": MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0, "extra_body": extra, **more}
        )


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Poll: statistics reach the API process a moment after the answer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def forking(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment whose engines fork their processes, and are there in less than half of the time: see FORKING."""
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(FORKING), environ.get("PYTHONPATH")]))}


@contextmanager
def serving(
    log: Path, command: list[str], more: dict[str, str] | None = None, *, as_users_do: bool = False
) -> Iterator[ServerUnderTest]:
    """`launched`, once it is healthy. as_users_do: its engine starts processes as it always does, not `forking`."""
    if not as_users_do:
        more = forking({"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **(more or {})})
    with launched(log, command, more) as started:
        started.wait_until_healthy()
        yield started


@contextmanager
def launched(log: Path, command: list[str], more: dict[str, str] | None = None) -> Iterator[ServerUnderTest]:
    """Run a console script of this environment with --port and --api-key added, in a session of its own.

    more: environment variables.
    """
    script = str(Path(sys.executable).parent / command[0])
    flags = ["--api-key", KEY, "--enforce-eager", "--dtype", "float32"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", **(more or {})}
    with server.launched([script, *command[1:], *flags], log, environ) as (url, process):
        yield ServerUnderTest(url, process, log)

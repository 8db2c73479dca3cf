"""A server of one's own: `kvserve serve` on a free port, with the policies that exist for evaluation only."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

PLUGINS = Path(__file__).parent / "plugin"
"""On the server's import path: the package whose entry points name the oracle."""
START_SECONDS = 300.0
BLOCK = 32
FLAGS = ("--enforce-eager", "--block-size", str(BLOCK), "--max-num-seqs", "64", "--max-model-len", "4096")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}


class NoServer(RuntimeError):
    """The server did not start; the message has the end of its log."""


@contextmanager
def serving(flags: Sequence[str], paths: Sequence[Path] = (PLUGINS,), **environ: str) -> Iterator[str]:
    """Base address of a server that runs inside the block; `paths` go before the others that it imports from."""
    port = free_port()
    command = [sys.executable, "-m", "server.cli.main", "serve", "--port", str(port), *FLAGS, *flags]
    root = Path(__file__).parents[1]
    path = os.pathsep.join([*map(str, paths), str(root), os.environ.get("PYTHONPATH", "")])
    env = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1", **os.environ, **environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            _wait(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
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


def _wait(url: str, process: "subprocess.Popen[bytes]", log: object) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.3)
    log.seek(0)  # type: ignore[attr-defined]
    tail = log.read()[-3000:]  # type: ignore[attr-defined]
    raise NoServer(f"`kvserve serve` did not start (exit code {process.poll()}):\n{tail}")

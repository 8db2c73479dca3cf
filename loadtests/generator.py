"""Runs of `vllm bench serve` (see `bench_serve`), each in a process of its own.

Importing it takes some ten seconds of a core, more than most runs: a fork server does it once, runs are forks of it.
"""

import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import shlex
import signal
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.server import MODEL
from loadtests.sizes import Load
from models import MINI

MODULE = "loadtests.bench_serve"
PERCENTILES = ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,95"]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([MODULE])


def prepare() -> None:
    """Start importing, while the caller waits for something else."""
    multiprocessing.forkserver.ensure_running()


class RunFailed(RuntimeError):
    """A generator ended without a result; the message has the end of its log."""


class Target(NamedTuple):
    """What a request must keep to count for goodput, milliseconds."""

    ttft: float
    tpot: float


class LoadResult(NamedTuple):
    """What a run of `vllm bench serve` reports. Rates per second, times in milliseconds."""

    completed: int
    failed: int
    seconds: float
    tokens_per_s: float  # generated ones
    goodput: float  # requests that kept the target
    ttft_p50_ms: float
    ttft_p95_ms: float
    tpot_p50_ms: float
    itl_p95_ms: float

    @classmethod
    def of(cls, found: dict[str, Any]) -> "LoadResult":
        """From the tool's own JSON."""
        return cls(
            completed=found["completed"],
            failed=found["failed"],
            seconds=found["duration"],
            tokens_per_s=found["output_throughput"],
            goodput=found["request_goodput"] or 0.0,  # null if no target was given
            ttft_p50_ms=found["p50_ttft_ms"],
            ttft_p95_ms=found["p95_ttft_ms"],
            tpot_p50_ms=found["p50_tpot_ms"],
            itl_p95_ms=found["p95_itl_ms"],
        )


class Run:
    """One generator at work."""

    def __init__(self, arguments: list[str], result: Path) -> None:
        self._result, self._log = result, result.with_suffix(".log")
        self._process = _forks.Process(target=_bench_serve, args=(arguments, self._log), daemon=True)
        self._process.start()

    def result(self) -> LoadResult:
        """Waits for it. Raises RunFailed if there is none, or if not one request was answered."""
        self._process.join()
        found = json.loads(self._result.read_text()) if self._result.exists() else {}
        if not found.get("completed"):
            log = self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""
            raise RunFailed(f"vllm bench serve (exit code {self._process.exitcode}) has no result:\n{log}")
        return LoadResult.of(found)

    def kill(self) -> None:
        """Without a chance to say goodbye: its connections break off."""
        self._process.kill()
        self._process.join()


class Generator:
    """Starts runs against one server. No prompt is sent twice: each run has a seed of its own."""

    _seeds = itertools.count(1)

    def __init__(self, url: str, folder: Path, commands: list[str]) -> None:
        """commands: filled with what one would type to repeat the runs by hand."""
        self._url, self._folder, self._commands = url, folder, commands

    def start(self, policy: str, load: Load, target: Target | None = None) -> Run:
        seed = next(self._seeds)
        result = self._folder / f"run-{seed}.json"
        arguments = [*self._where(), *_what(policy, load, target), "--seed", str(seed)]
        self._commands.append(shlex.join(["python", "-m", MODULE, *arguments]))
        saving = ["--save-result", "--result-dir", str(result.parent), "--result-filename", result.name]
        return Run([*arguments, "--disable-tqdm", *saving], result)

    def run(self, policy: str, load: Load, target: Target | None = None) -> LoadResult:
        return self.start(policy, load, target).result()

    def _where(self) -> list[str]:
        return ["--base-url", self._url, "--model", MODEL, "--tokenizer", os.path.relpath(MINI)]


def _what(policy: str, load: Load, target: Target | None) -> list[str]:
    slo = ["--goodput", f"ttft:{target.ttft:.1f}", f"tpot:{target.tpot:.1f}"] if target else []
    body = json.dumps({"kv_policy": policy})
    many = ["--num-prompts", str(load.requests), "--max-concurrency", str(load.clients)]
    return [*many, *_dataset(load), "--ignore-eos", "--temperature", "0", "--extra-body", body, *PERCENTILES, *slo]


def _dataset(load: Load) -> list[str]:
    if load.prefixes:
        lengths = {"prefix": load.prefix, "suffix": load.prompt, "output": load.output}
        flags = [word for name, n in lengths.items() for word in (f"--prefix-repetition-{name}-len", str(n))]
        number = ["--prefix-repetition-num-prefixes", str(load.prefixes)]
        return ["--dataset-name", "prefix_repetition", *flags, *number]
    return ["--dataset-name", "random", "--random-input-len", str(load.prompt), "--random-output-len", str(load.output)]


def _bench_serve(arguments: list[str], log: Path) -> None:
    """In the child; all that it prints goes into `log`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    from loadtests import bench_serve

    bench_serve.main(arguments)

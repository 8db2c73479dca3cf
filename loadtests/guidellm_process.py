"""guidellm, unmodified: one process per policy, configured by a file, for a given time."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from loadtests.generator import RunFailed, Target
from loadtests.server import MODEL
from loadtests.sizes import Load
from models import MINI

_TPOT = "inter_token_latency_ms"
"""What vLLM calls TPOT: without the first token."""

ENVIRONMENT = {"GUIDELLM__MAX_WORKER_PROCESSES": "1", "HF_HUB_OFFLINE": "1"}


def scenario(url: str, policy: str, load: Load, seconds: int, target: Target, seed: int, out: Path) -> dict[str, Any]:
    """guidellm's own scenario format; `extras.body` carries the policy."""
    body = {"kv_policy": policy, "temperature": 0}
    return {
        "spec": {
            "backend": {
                "kind": "openai_http",
                "target": url,
                "model": MODEL,
                "request_format": "/v1/completions",
                "extras": {"body": body},
            },
            "profile": {"kind": "concurrent", "streams": [load.clients]},
            "constraints": [{"kind": "max_duration", "seconds": seconds}],
            "tokenizer": {"kind": "huggingface_auto", "model": str(MINI)},
            "data": [{"kind": "synthetic_text", "prompt_tokens": load.prompt, "output_tokens": load.output}],
            "seed": {"kind": "static", "value": seed},
            "metrics": {
                "kind": "generative",
                "sample_size": 0,
                "slo": {"ttft_ms": target.ttft, "tpot_ms": target.tpot},
            },
            "outputs": [{"kind": "json", "path": str(out)}],
        }
    }


class Guide:
    """One guidellm at work."""

    def __init__(self, folder: Path, name: str, made: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config, self._log = folder / f"{name}.json", folder / f"{name}.log"
        self._out = Path(made["spec"]["outputs"][0]["path"])
        config.write_text(json.dumps(made))
        command = [sys.executable, "-m", "guidellm", "run", "--config", str(config), "--disable-console-interactive"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **ENVIRONMENT}, start_new_session=True
            )

    def result(self) -> dict[str, float]:
        """Waits for it; the quantities of the table. Raises RunFailed if there is no result."""
        code = self._process.wait()
        if code != 0 or not self._out.exists():
            raise RunFailed(f"guidellm (exit code {code}) has no result:\n{self._log.read_text()[-3000:]}")
        return figures(json.loads(self._out.read_text()))

    def stop(self) -> None:
        """Ends it and its workers, if they have not ended by themselves."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


def figures(report: dict[str, Any]) -> dict[str, float]:
    """From guidellm's own JSON; tokens/s and latencies of completed requests."""
    (found,) = report["benchmarks"]
    metrics, seconds = found["metrics"], found["duration"]
    good = (metrics["slo_attainment"] or 0.0) * metrics["slo_determined_requests"]  # null if there were none
    first, between = (metrics[name]["successful"]["percentiles"] for name in ("time_to_first_token_ms", _TPOT))
    return {
        "tokens_per_s": metrics["output_token_count"]["successful"]["total_sum"] / seconds,
        "goodput": good / seconds,
        "ttft_p50_ms": first["p50"],
        "ttft_p95_ms": first["p95"],
        "tpot_p50_ms": between["p50"],
        "failed": metrics["request_totals"]["errored"],
    }

"""What several API processes know together: each writes a file of its own and reads those of the others.

With `--api-server-count N` vLLM sends an engine's statistics to one of the processes, whichever has an answer in that
step, but every process answers scrapes. The files are in the directory that vLLM makes for prometheus_client.
"""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"

logger = logging.getLogger(__name__)


class Shared:
    """The files of one server's `count` processes. Only `rank` writes its own, so nothing needs a lock."""

    def __init__(self, folder: Path, run: str, rank: int, count: int) -> None:
        paths = [folder / f"kvserve-{run}-{i}.json" for i in range(count)]
        self._own = paths.pop(rank)
        self._others = paths
        self._read: dict[Path, dict[str, Any]] = {}  # stays when the folder goes, as the server ends
        self._failed = False

    @classmethod
    def of(cls, vllm_config: Any) -> "Shared | None":
        """None for a process that is alone."""
        folder = os.environ.get(FOLDER)
        if folder is None or (count := vllm_config.parallel_config._api_process_count) == 1:
            return None
        return cls(Path(folder), _run(), vllm_config.parallel_config._api_process_rank, count)

    def publish(self, known: dict[str, Any]) -> None:
        """Replace the own file atomically. A failure is logged once and raises nothing: these are only statistics."""
        new = self._own.with_suffix(".new")
        try:
            new.write_text(json.dumps(known))
            os.replace(new, self._own)
        except OSError as error:
            if not self._failed:
                logger.warning("kvserve: cannot share statistics with the other API processes: %s", error)
            self._failed = True

    def others(self) -> list[dict[str, Any]]:
        """What the other processes published last; for a file that cannot be read, what it said before."""
        for path in self._others:
            with suppress(OSError, ValueError):
                self._read[path] = json.loads(path.read_text())
        return list(self._read.values())


def _run() -> str:
    """Names the server whose processes these are: a folder that the user set may hold files of earlier ones."""
    parent = psutil.Process(os.getppid())
    return f"{parent.pid}-{parent.create_time():.2f}"

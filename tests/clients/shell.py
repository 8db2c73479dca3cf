"""A user's shell: commands in a folder of their own, with nothing of this test process in their environment."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.server.running import KEY

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "GUIDELLM__MAX_WORKER_PROCESSES": "1",  # ten, each of which imports for seconds, send six requests no faster
}
SECONDS = 240.0


class Shell:
    """A folder with the clone's `models` in it. Scripts started one after the other run side by side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        if not (folder / "models").exists():
            (folder / "models").symlink_to(ROOT / "models")

    def start(self, script: str, log: str) -> subprocess.Popen[bytes]:
        """Run a shell script in a process group of its own; what it says goes to the file `log`."""
        with (self.folder / log).open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-euc", script],
                cwd=self.folder,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                process_group=0,
            )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs, with its children."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def python(self, code: str, log: str) -> subprocess.Popen[bytes]:
        (self.folder / f"{log}.py").write_text(code, encoding="utf-8")
        return self.start(f"python {log}.py", log)

    def said(self, log: str) -> str:
        return (self.folder / log).read_text(encoding="utf-8", errors="replace")

    def finished(self, **processes: subprocess.Popen[bytes]) -> dict[str, str]:
        """What each said, by its log; the first that fails is an AssertionError with its last words."""
        for log, process in processes.items():
            assert process.wait(SECONDS) == 0, f"{log}:\n{self.said(log)[-3000:]}"
        return {log: self.said(log) for log in processes}

    def _environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "PYTEST_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        mine = {"PATH": path, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "HF_HOME": str(self.folder / "hf")}
        return {**kept, **mine, **SETTINGS}

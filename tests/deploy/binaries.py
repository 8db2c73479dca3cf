"""Where `prometheus` and `promtool` are: installed, or unpacked from Debian's package into a cache folder."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

NAMES = ("prometheus", "promtool")
FETCH_SECONDS = 60.0
HINT = "install Debian's package (apt-get install prometheus), or put prometheus and promtool on PATH"


class MissingBinary(Exception):
    """No Prometheus here, and why."""


@cache
def folder() -> Path:
    """The folder of both programs. Raises Missing."""
    if all(map(shutil.which, NAMES)):
        return Path(str(shutil.which(NAMES[0]))).parent
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvserve" / "prometheus"
    programs = kept / "usr" / "bin"
    if not all((programs / name).is_file() for name in NAMES):
        _unpack(kept)
    return programs


def _unpack(target: Path) -> None:
    """Debian's package without its dependencies: the programs are static, and nobody looks at the web pages."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise MissingBinary(f"no prometheus and no apt-get to fetch it; {HINT}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as scratch:
        package = _download(Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)


def _download(scratch: Path) -> Path:
    """With the lists of packages that the machine has; if it has none, with lists of our own. Needs no root."""
    private = [f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}/cache", "Debug::NoLocking=1"]
    for folder in ("lists", "cache"):
        (scratch / folder / "partial").mkdir(parents=True)
    attempts: tuple[tuple[list[str], list[str]], ...] = (
        ([], ["download"]),
        (private, ["update"]),
        (private, ["download"]),
    )
    for options, command in attempts:
        said = _apt(scratch, options, [*command, *(["prometheus"] if command == ["download"] else [])])
        if found := next(scratch.glob("*.deb"), None):
            return found
    raise MissingBinary(f"no prometheus, and apt-get could not fetch it ({said}); {HINT}")


def _apt(scratch: Path, options: list[str], command: list[str]) -> str:
    """Run apt-get for a limited time; returns the last line of what it complains about."""
    flags = [part for option in ["APT::Sandbox::User=", "Acquire::Retries=0", *options] for part in ("-o", option)]
    try:
        done = subprocess.run(
            ["apt-get", "-q", *flags, *command], cwd=scratch, capture_output=True, text=True, timeout=FETCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"not within {FETCH_SECONDS:.0f} s"
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]

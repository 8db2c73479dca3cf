"""Text to calibrate on, cut into windows of tokens."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path


class CorpusError(ValueError):
    """There is not enough text."""


def text_of(path: Path | None) -> str:
    """A text file, or, if none is named, the documentation that every Python carries."""
    if path is None:
        from models.tasks.prose import sentences

        return " ".join(islice(sentences(held_out=False), 20_000))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"--corpus {path}: {error}") from None


def windows(text: str, encode: Callable[[str], list[int]], tokens: int, size: int) -> list[list[int]]:
    """The first `tokens` tokens of a text in windows of `size`; the last one may be shorter, down to half.

    Raises CorpusError if the text does not fill half a window.
    """
    part, ids = 0, list[int]()
    while len(ids) < tokens and part < len(text):
        step = 8 * (tokens - len(ids)) + 64  # characters; most tokens have fewer
        ids += encode(text[part : part + step])
        part += step
    ids = ids[:tokens]
    found = [ids[start : start + size] for start in range(0, len(ids), size)]
    found = [window for window in found if len(window) >= size // 2]
    if not found:
        raise CorpusError(f"the corpus has {len(ids)} tokens; at least {size // 2} are needed (half of --window)")
    return found

"""Filler prose, derived at run time from the documentation that every Python carries.

The text is the docstrings of the standard library and the language reference in ``pydoc_data.topics``. It is read
from the running interpreter and never stored in this repository. The split into training and held-out text goes by
document (a module or a topic), so that no held-out sentence has neighbours in the training text.
"""

import ast
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

HELD_OUT_SHARE = 8  # one document of eight
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
_PLAIN_WORD = re.compile(r"[(\"']?[A-Za-z][A-Za-z'-]*[.,;:!?)\"']*$")
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z])")


@lru_cache(maxsize=2)
def sentences(held_out: bool) -> tuple[str, ...]:
    """All sentences of one side of the split, in document order, one space between words."""
    found = (s for text in _documents(held_out) for paragraph in _paragraphs(text) for s in split(paragraph))
    return tuple(dict.fromkeys(found))


def _documents(held_out: bool) -> Iterator[str]:
    for name, text in _topics():
        if _is_held_out(name) == held_out:
            yield text
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not _SKIPPED_FOLDERS & set(name.parts) and _is_held_out(name.as_posix()) == held_out:
            yield from _docstrings(path)


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0


def _topics() -> list[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship Python without its reference pages
        return []
    return sorted(topics.items())


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in library code are not our concern
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of at least eight words, of which more than 80 % are plain words."""
    for block in re.split(r"\n\s*\n", text):
        words = block.split()
        plain = sum(bool(_PLAIN_WORD.match(word)) for word in words)
        if len(words) >= 8 and plain > 0.8 * len(words) and block.isascii():
            yield " ".join(words)


def split(paragraph: str) -> Iterator[str]:
    """Its sentences of 4 to 60 words, but for markup."""
    for sentence in _SENTENCE_END.split(paragraph):
        if 4 <= len(sentence.split()) <= 60 and "<" not in sentence:
            yield sentence

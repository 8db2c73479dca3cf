"""Result files: JSON for programs, and Markdown of the same name for people."""

import json
from pathlib import Path
from typing import Any

DIGITS = 6
"""Significant digits of a number that was measured: more than any table shows, fewer than it wobbles by."""
WIDTH = 700
"""Characters that a line may have: a row of a table is one line, and so are its values."""


def write(out: Path, record: dict[str, Any], markdown: str) -> None:
    """JSON at `out` and the text beside it as .md, each replaced whole."""
    replace(out, text(record))
    replace(out.with_suffix(".md"), markdown)


def text(record: dict[str, Any]) -> str:
    """The record as JSON with numbers rounded; short parts and lists of plain values on one line each."""
    return _text(rounded(record), 0) + "\n"


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """The same with fractions rounded to so many significant digits; whole numbers stay exact."""
    if isinstance(value, float) and not value.is_integer():
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, list | tuple) else value


def _text(value: Any, depth: int) -> str:
    line = json.dumps(value)
    if depth + len(line) <= WIDTH or not _parts(value):
        return line
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        rows = (f"{json.dumps(str(key))}: {_text(each, depth + 1)}" for key, each in value.items())
        return "{" + inner + f",{inner}".join(rows) + outer + "}"
    return "[" + inner + f",{inner}".join(_text(each, depth + 1) for each in value) + outer + "]"


def _parts(value: Any) -> bool:
    """Whether it is worth breaking: a list of numbers is not."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(e, dict | list | str) for e in value))


def replace(path: Path, content: str) -> None:
    """Write a file in place of what is there; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)

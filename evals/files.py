"""Files that are written whole or not at all."""

from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write a file in place of what is there; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)

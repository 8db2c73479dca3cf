"""`python -m handbook` writes docs/policies and docs/models.md; `--check` names stale pages: exit code 1 if any is."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from handbook.families import models
from handbook.pages import pages

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "policies"
MODELS = DOCS / "models.md"


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of pages that are missing, outdated, or of no policy."""
    wanted = pages()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m handbook", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args(argv).check:
        write()
        MODELS.write_text(models(), encoding="utf-8")
        return 0
    found = stale()
    if not MODELS.is_file() or MODELS.read_text(encoding="utf-8") != models():
        found.append(MODELS.name)
    if found:
        print(f"stale pages in docs: {', '.join(found)}; refresh them with `make pages`", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

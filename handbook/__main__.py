"""`python -m handbook` refreshes what is generated in docs/policies and docs/models.md, and begins missing pages.

`--check` names pages that are stale or lack text that is written by hand: exit code 1 if any does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from handbook import families, policies
from handbook.page import Page
from kvserve.policy import registry

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "policies"
MODELS = DOCS / "models.md"


def pages(folder: Path = FOLDER) -> list[Page]:
    """The table of all policies, and a page for each."""
    classes = [registry.get(name) for name in policies.names()]
    each = [Page(folder / f"{cls.name}.md", policies.blocks(cls), policies.headings(cls)) for cls in classes]
    return [Page(folder / "README.md", {"table": policies.index()}), *each]


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of pages that are missing, outdated, or of no policy."""
    wanted = pages(folder)
    stray = {path.name for path in folder.glob("*.md")} - {page.path.name for page in wanted}
    return sorted([*(page.path.name for page in wanted if page.stale()), *stray])


def unwritten(folder: Path = FOLDER) -> list[str]:
    """Names of pages that lack text, or have it under other headings than they must."""
    return sorted(page.path.name for page in pages(folder) if not page.written())


def write(folder: Path = FOLDER) -> None:
    """Text written by hand stays. Raises ValueError for a page without the marks of its blocks."""
    for page in pages(folder):
        page.write()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m handbook", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    models = Page(MODELS, families.blocks())
    if not parser.parse_args(argv).check:
        write()
        models.write()
        return 0
    if found := [*stale(), *([MODELS.name] if models.stale() else [])]:
        hint = "refresh them with `make pages`, delete what is of no policy"
        print(f"stale pages in docs: {', '.join(found)}; {hint}", file=sys.stderr)
    if missing := unwritten():
        print(f"text is missing in docs/policies: {', '.join(missing)}; write it under all headings", file=sys.stderr)
    return 1 if found or missing else 0


if __name__ == "__main__":
    sys.exit(main())

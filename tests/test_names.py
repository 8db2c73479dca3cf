"""One class name means one thing, and file names are nouns that a stranger could guess."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
VAGUE = {"held", "terms", "opening", "ending", "elsewhere", "finding", "live", "spent", "legend", "notes", "guide"}


def sources() -> list[Path]:
    """All Python files of the project, without environments and caches."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return [path for path in found if not any(part.startswith(".") or part == "build" for part in path.parts)]


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in sources():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(path))
    assert "CompressibleManager" in homes
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_file_names_say_what_is_inside() -> None:
    assert [str(path) for path in sources() if path.stem.removeprefix("test_") in VAGUE] == []

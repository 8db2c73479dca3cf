"""What this project's sources name of vLLM: imports, also those inside functions, and classes named in strings."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("bench", "evals", "examples", "kvserve", "loadtests", "measuring", "models", "policies", "server")
CLASS = re.compile(r"vllm(\.\w+)+\.[A-Z]\w*")


def uses(is_module: Callable[[str], bool]) -> dict[str, str]:
    """Full name -> a file that names it. is_module: whether a full name of vLLM is a module's."""
    files = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    return {name: file for file, tree in trees.items() for name in _named(tree, is_module)}


def _named(tree: ast.Module, is_module: Callable[[str], bool]) -> Iterator[str]:
    imported = dict(_imports(tree))
    yield from imported.values()
    modules = {here: there for here, there in imported.items() if is_module(there)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CLASS.fullmatch(node.value):
            yield node.value
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{modules[node.value.id]}.{node.attr}"


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What is imported from vLLM: name here -> full name there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_vllm(node.module):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        if isinstance(node, ast.Import):
            assert not any(_is_vllm(alias.name) for alias in node.names), "say `from vllm import` here"


def _is_vllm(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "vllm"

"""What a vLLM declares, read from its Python files alone: it need not be installed, nor the libraries of a GPU."""

import ast
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Declared(NamedTuple):
    """Where a name is declared, after all re-exports; node is None for a name from outside vLLM."""

    module: str
    node: ast.AST | None


class SourceOfVLLM:
    """place: a wheel, or a folder in which the folder `vllm` lies."""

    def __init__(self, place: Path) -> None:
        self.root = zipfile.Path(place) if place.suffix == ".whl" else place
        self.module, self.names = cache(self._module), cache(self._names)

    @classmethod
    def installed(cls) -> "SourceOfVLLM":
        spec = find_spec("vllm")  # which does not import it
        assert spec is not None and spec.origin is not None
        return cls(Path(spec.origin).parents[1])

    def version(self) -> str:
        node = self.names("vllm._version")["version"]
        assert isinstance(node, ast.Assign)
        return str(ast.literal_eval(node.value))

    def _module(self, name: str) -> tuple[ast.Module, str] | None:
        """A module's tree, and the package that its relative imports count from."""
        for end, package in ((".py", name.rpartition(".")[0]), ("/__init__.py", name)):
            path = self.root / (name.replace(".", "/") + end)
            if path.exists():
                return ast.parse(path.read_text(encoding="utf-8")), package
        return None

    def _names(self, module: str) -> dict[str, ast.AST]:
        found = self.module(module)
        return dict(_declarations(found[0].body)) if found else {}

    def find(self, name: str) -> Declared | None:
        """A module, class, function or variable by its full name; None if there is none."""
        if name.partition(".")[0] != "vllm":
            return Declared(name, None)
        if (found := self.module(name)) is not None:
            return Declared(name, found[0])
        module, _, last = name.rpartition(".")
        names = self.names(module)
        if (node := names.get(last)) is None:
            found_in = (self.find(f"{self._origin(module, each)}.{last}") for each in _stars(names))
            return next((each for each in found_in if each is not None), None)
        if not isinstance(node, ast.Import | ast.ImportFrom):
            return Declared(module, node)
        alias = next(alias for alias in node.names if _bound(node, alias) == last)
        if isinstance(node, ast.Import):
            return self.find(alias.name if alias.asname else last)
        return self.find(f"{self._origin(module, node)}.{alias.name}")

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        """The full name of the module that one imports from."""
        package = self.module(module)[1].split(".")  # type: ignore[index]
        above = package[: len(package) - node.level + 1] if node.level else []
        return ".".join([*above, *([node.module] if node.module else [])])

    def parameters(self, owner: str, name: str) -> str | None:
        """What a method takes, or "property", as `kvserve.startup.guard` asks of an installed vLLM."""
        found = self.find(owner)
        if found is None or not isinstance(found.node, ast.ClassDef):
            return None
        for node in found.node.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return _parameters(node)
        bases = (ast.unparse(b.value if isinstance(b, ast.Subscript) else b) for b in found.node.bases)
        inherited = (self.parameters(f"{found.module}.{base}", name) for base in bases)
        return next((each for each in inherited if each is not None), None)


def _declarations(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Names of a module, those too that it declares under a condition."""
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, node
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                yield f"* of line {node.lineno}", node
            case ast.Import() | ast.ImportFrom():
                yield from ((_bound(node, alias), node) for alias in node.names)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from ((each.id, node) for each in targets if isinstance(each, ast.Name))
            case ast.If() | ast.Try() | ast.With():
                for part in ("body", "orelse", "handlers", "finalbody"):
                    yield from _declarations(getattr(node, part, []))
            case ast.ExceptHandler():
                yield from _declarations(node.body)


def _stars(names: dict[str, ast.AST]) -> Iterator[ast.ImportFrom]:
    """Those of `_declarations` that are `from ... import *`."""
    yield from (node for name, node in names.items() if name.startswith("*") and isinstance(node, ast.ImportFrom))


def _bound(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    """What an import calls its object."""
    first = alias.name.partition(".")[0] if isinstance(node, ast.Import) else alias.name
    return alias.asname or first


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list):
        return "property"
    args = node.args
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    return " ".join(each.arg for each in every if each is not None)

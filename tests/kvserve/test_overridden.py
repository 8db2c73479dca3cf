"""The guard's list of what we override of vLLM is complete: it is compared with our classes and assignments."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest
from pydantic import BaseModel

import kvserve
import server
from kvserve.startup import guard
from kvserve.startup.overridden import SIGNATURES

PACKAGES = (kvserve, server)
OURS = tuple(f"{package.__name__}." for package in PACKAGES)
LISTED = {f"{owner}.{name}" for owner, names in SIGNATURES.items() for name in names}


def subclasses(cls, found):
    for each in type.__subclasses__(cls):
        if each not in found:
            found.add(each)
            subclasses(each, found)
    return found


def overridden(cls):
    """Of each name that our classes among the bases define: the classes of vLLM behind them that declare it too."""
    order = cls.__mro__
    for i, base in enumerate(order):
        for name, value in vars(base).items() if str(base.__module__).startswith(OURS) else ():
            declaring = [b for b in order[i + 1 :] if str(b.__module__).startswith("vllm.") and name in vars(b)]
            method = isinstance(value, property) or callable(getattr(value, "__func__", value))
            if declaring and method and not name.startswith("__"):
                yield tuple(f"{b.__module__}.{b.__qualname__}.{name}" for b in declaring)


@pytest.fixture(scope="module")
def classes():
    """Those in whose bases one of ours stands before one of vLLM."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    from kvserve.engine import worker
    from kvserve.runner import attention

    made = [worker._cpu_worker(), worker._cuda_worker()]
    made += [getattr(attention, name) for name in (*attention.Backends.cpu, *attention.Backends.cuda)]
    yield [cls for cls in subclasses(object, set()) if not issubclass(cls, BaseModel)]
    del made


def test_what_our_classes_override_is_listed(classes):
    found = {names for cls in classes for names in overridden(cls)}
    methods = {names[0].rpartition(".")[2] for names in found}
    assert {"schedule", "build", "forward", "sample_tokens", "merge", "init_device", "record"} <= methods
    assert [names for names in found if not LISTED & set(names)] == []


def assigned(tree):
    """Methods that a module puts in the place of others': `x.name = name`, or `x.name = f(x.name)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(target := node.targets[0], ast.Attribute):
            continue
        functions = {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
        same = isinstance(node.value, ast.Name) and node.value.id == target.attr and target.attr in functions
        given = node.value.args if isinstance(node.value, ast.Call) else []
        wrapped = len(given) == 1 and isinstance(given[0], ast.Attribute) and given[0].attr == target.attr
        if not ast.unparse(target).startswith(f"self.{target.attr}") and (same or wrapped):
            yield target.attr


def test_what_we_assign_is_listed():
    files = [path for package in PACKAGES for path in Path(package.__path__[0]).rglob("*.py")]
    found = {name for path in files for name in assigned(ast.parse(path.read_text(encoding="utf-8")))}
    assert {"process_inputs", "allocate_slots", "process_outputs", "_apply_ready_response"} <= found
    prometheus = {"collect"}  # of its MultiProcessCollector
    assert found - {name.rpartition(".")[2] for name in LISTED} == prometheus


def test_a_signature_that_is_listed_is_checked(monkeypatch):
    guard.problem.cache_clear()
    changed = {"vllm.v1.core.sched.scheduler.Scheduler": {"add_request": "self", "gone": "self"}}
    monkeypatch.setattr(guard, "SIGNATURES", changed)
    assert "changed Scheduler.add_request(self request)" in guard.problem()
    guard.problem.cache_clear()
    del changed["vllm.v1.core.sched.scheduler.Scheduler"]["add_request"]
    assert "has no Scheduler.gone" in guard.problem()
    guard.problem.cache_clear()

"""Who may know whom: imports of each room, read from the source with `ast`, also those inside functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = {"bench", "deploy", "evals", "handbook", "kvserve", "loadtests", "measuring", "models", "policies", "server"}
BELOW = [
    "kvserve.policy",
    "kvserve.stats",
    "kvserve.channels",
    *(f"kvserve.startup.{name}" for name in ("connectors", "guard", "options", "refusals", "version", "vllm_0_33")),
]
ROOMS = {  # what a room may import of this project, beside itself; from the ground up
    "policies": ["kvserve.policy"],
    "kvserve/policy": [],
    "kvserve/stats.py": ["kvserve.policy"],
    "kvserve/channels.py": ["kvserve.policy"],
    "kvserve/testing": ["kvserve.policy", "kvserve.channels"],
    "kvserve/startup/connectors.py": [],
    "kvserve/startup/guard.py": [*BELOW, "kvserve.startup.overridden"],
    "kvserve/startup/options.py": BELOW,
    "kvserve/startup/refusals.py": BELOW,
    "kvserve/cache": BELOW,
    "kvserve/evidence": [*BELOW, "kvserve.cache"],
    "kvserve/summary": [*BELOW, "kvserve.cache", "kvserve.evidence"],
    "kvserve/engine": [*BELOW, "kvserve.cache", "kvserve.evidence", "kvserve.startup"],
    "kvserve/runner": [
        *BELOW,
        *(f"kvserve.{name}" for name in ("cache", "evidence", "startup", "engine.compactor", "engine.spec")),
    ],
    "kvserve/startup": ["kvserve"],  # it puts the rooms together
    "server": ["kvserve.policy", "kvserve.stats", "kvserve.channels", "kvserve.startup", "models", "evals.command"],
}
ALSO = {  # who has a reason to know more
    "kvserve/engine/worker.py": ["kvserve.runner"],
    "server/cli/architecture.py": ["kvserve.cache.layout"],
    "server/cli/calibrate.py": ["kvserve.evidence.calibration"],
    "server/cli/check_policy.py": ["kvserve.testing"],
    "server/http": ["kvserve.engine.failure", "kvserve.engine.frontend"],  # how a request enters and how it fails
}
INTERNALS = {
    "kvserve/channels.py",
    "kvserve/engine",
    "kvserve/runner",
    "kvserve/startup",
    "server/metrics/metrics.py",
    "server/canary/replay.py",
    "server/cli/architecture.py",
}


def known(place: str, top: bool = False) -> set[tuple[str, str]]:
    """Pairs of a file and what it imports; top: when it is imported itself."""
    paths = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    return {(str(path.relative_to(ROOT)), name) for path in paths for name in imports(path, top)}


def imports(path: Path, top: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: list[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def also(file: str) -> list[str]:
    return [name for place, names in ALSO.items() if Path(file).is_relative_to(place) for name in names]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_what_it_may(room: str) -> None:
    allowed = [*ROOMS[room], room.removesuffix(".py").replace("/", ".")]
    found = known(room)
    ours = {pair for pair in found if pair[1].partition(".")[0] in HOUSE and pair[1] != "kvserve"}
    wrong = {(file, name) for file, name in ours if not within(name, [*allowed, *also(file)])}
    assert found and not wrong, f"a room imports what it should not know: {sorted(wrong)}"


def test_vllm_and_torch_stay_where_they_are_needed() -> None:
    assert {
        pair for room in ("policies", "kvserve/policy") for pair in known(room) if within(pair[1], ["vllm"])
    } == set()
    inside = {file for room in ("kvserve", "server") for file, name in known(room) if within(name, ["vllm.v1"])}
    assert {file for file in inside if not any(Path(file).is_relative_to(place) for place in INTERNALS)} == set()
    assert {file for file, name in known("server", top=True) if within(name, ["torch"])} <= {"server/cli/calibrate.py"}


def test_every_room_has_its_line() -> None:
    rooms = {f"kvserve/{path.parent.name}" for path in (ROOT / "kvserve").glob("*/__init__.py")}
    assert rooms and rooms <= set(ROOMS)

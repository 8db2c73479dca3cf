"""The dashboards and rules as they are shipped, read back for tests."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PATHS = sorted((DEPLOY / "grafana").glob("*.json"))
METRIC = re.compile(r"\b((?:vllm:|kvserve_)\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


class ScrapeTarget(NamedTuple):
    """One query of one panel."""

    name: str
    expr: str


class Selector(NamedTuple):
    """A metric, and the labels that an expression asks of it."""

    metric: str
    labels: set[str]


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def variables(board: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def targets() -> list[ScrapeTarget]:
    """Every query of every dashboard."""
    return [
        ScrapeTarget(f"{path.stem}-{panel['id']}{target['refId']}-{panel['title']}", target["expr"])
        for path in PATHS
        for panel in panels(load(path))
        for target in panel["targets"]
    ]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def selectors(expr: str) -> list[Selector]:
    return [Selector(name, set(LABEL.findall(labels))) for name, labels in METRIC.findall(expr)]

"""Every query of the dashboards and rules, against a real server under load and a real Prometheus."""

import math
import re
from pathlib import Path

import pytest

from tests.deploy import boards
from tests.deploy.boards import ScrapeTarget
from tests.deploy.conftest import Observed

WINDOW = "5s"  # Grafana's $__rate_interval is at least four scrapes, here of a second each
ADDED = {"job", "instance"}  # by Prometheus
LABEL_VALUES = re.compile(r"label_values\((.*), (\w+)\)")

TARGETS = boards.targets()
ALERTS = [ScrapeTarget(rule["alert"], rule["expr"]) for rule in boards.rules()]


def _filled(observed: Observed, text: str) -> str:
    """As Grafana does with "All" chosen: each variable becomes all of its values."""
    for name, variable in boards.variables(boards.load(boards.PATHS[0])).items():
        if variable["type"] == "query" and f"${name}" in text:
            values = _choices(observed, variable["query"])
            text = text.replace(f"${name}", "(" + "|".join(map(re.escape, values)).replace("\\", "\\\\") + ")")
    return text.replace("$__rate_interval", WINDOW)


def _choices(observed: Observed, query: str) -> list[str]:
    found = LABEL_VALUES.fullmatch(query)
    assert found, query
    selector, name = found.groups()
    return observed.asked().labels(name, _filled(observed, selector))


@pytest.mark.parametrize("target", [*TARGETS, *ALERTS], ids=lambda target: target.name)
def test_metrics_and_labels_exist(observed: Observed, target: ScrapeTarget) -> None:
    """Runs without a Prometheus too."""
    selectors = boards.selectors(target.expr)
    assert selectors
    for metric, labels in selectors:
        assert metric in observed.labels, f"the server has no {metric}"
        assert labels - ADDED <= observed.labels[metric], metric


@pytest.mark.parametrize("path", boards.PATHS, ids=lambda path: path.stem)
def test_variables_offer_something(observed: Observed, path: Path) -> None:
    for variable in boards.variables(boards.load(path)).values():
        if variable["type"] == "query":
            assert _choices(observed, variable["query"]), variable["name"]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_panel_has_data(observed: Observed, target: ScrapeTarget) -> None:
    """A value above zero: a line along the axis would hide a query that asks for the wrong thing."""
    values = observed.asked().values(_filled(observed, target.expr), observed.start, observed.end)
    assert any(math.isfinite(value) and value > 0 for value in values), f"no data: {target.expr}"


def test_rules_are_evaluated(observed: Observed) -> None:
    groups = observed.asked().get("/rules")["groups"]
    health = {rule["name"]: (rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]}
    assert health == {alert.name: ("ok", None) for alert in ALERTS}

"""The alert rules, checked and unit-tested by Prometheus' own tool."""

import subprocess

import pytest
import yaml

from tests.deploy import boards
from tests.deploy.binaries import MissingBinary, folder

RULES = boards.DEPLOY / "prometheus"


def _promtool(*arguments: str) -> None:
    try:
        program = folder() / "promtool"
    except MissingBinary as missing:
        pytest.skip(str(missing))
    done = subprocess.run([program, *arguments], cwd=RULES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", ["check rules rules.yaml", "check config prometheus.yaml"])
def test_syntax(arguments: str) -> None:
    _promtool(*arguments.split())


def test_alerts_fire_when_they_should() -> None:
    _promtool("test", "rules", "rules_test.yaml")


def test_every_alert_has_a_test_where_it_fires_and_one_where_it_does_not() -> None:
    tests = yaml.safe_load((RULES / "rules_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for fires in (True, False):
        found = {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires}
        assert found == {rule["alert"] for rule in boards.rules()}


def test_alerts_name_a_dashboard() -> None:
    titles = {boards.load(path)["title"] for path in boards.PATHS}
    assert {rule["annotations"]["dashboard"] for rule in boards.rules()} <= titles

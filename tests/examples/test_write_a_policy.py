"""docs/write-a-policy.md, followed to the letter in a folder outside the clone: installed, checked, tested, served."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvserve.testing import CHECKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write-a-policy.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "value-norm"


def blocks(section, language):
    """The code blocks of a section, by its number."""
    [text] = re.findall(rf"^## {section}\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


MODULE = "\n\n".join(blocks(1, "python"))
[PROJECT] = blocks(1, "toml")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of the package, which pip has installed into `site` inside of it."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "value_norm.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder / "site"), "."], cwd=folder, check=True, timeout=120)
    return folder


def run(package, *command):
    """Standard output of a Python command outside the clone that finds kvserve and the package."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package / "site"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd=package, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_page_is_the_example():
    assert (EXAMPLE / "value_norm.py").read_text() == MODULE
    assert (EXAMPLE / "pyproject.toml").read_text() == PROJECT


def test_it_is_listed(package):
    listed = json.loads(run(package, "-m", "server.cli.main", "policies", "--json"))["data"]
    assert {"any-tokens", "value-norm", "scissorhands"} <= {p["name"] for p in listed}


def test_it_passes_the_checks_on_tensors(package):
    said = run(package, "-m", "server.cli.main", "check-policy", "value-norm", "--no-engine")
    assert said.endswith("all checks hold\n")


@pytest.mark.parametrize("check", CHECKS[1:], ids=lambda check: check.__name__)  # it is not installed in this process
def test_so_does_the_smallest_one(check):
    names = {}
    exec(blocks(1, "python")[0], names)
    check(names["AnyTokens"]())


def test_its_tests_pass(package):
    (package / "test_value_norm.py").write_text("\n".join(blocks(6, "python")))
    assert "2 passed" in run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_value_norm.py")


def test_it_is_served(package):
    (package / "offline.py").write_text(blocks(3, "python")[0])
    full, weightless, weighted = run(package, "offline.py").strip().splitlines()[-3:]
    assert full.startswith("full ") and full.endswith(" None")
    said = [ast.literal_eval(line[line.rindex("{") :]) for line in (weightless, weighted)]
    assert [record["policy"] for record in said] == ["any-tokens", "value-norm"]
    assert all(record["compactions"] == 1 and record["evicted_tokens"] > 0 for record in said)
    assert said[1]["kept_tokens"] == 119  # 100 of the prompt, 19 generated


def test_it_fits_on_a_screen():
    policy = MODULE[MODULE.index("class ValueNorm") :]
    assert len(policy.splitlines()) <= 40

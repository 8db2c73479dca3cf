"""The first page names every policy, and the lines that it says a policy has."""

import re
from pathlib import Path

import pytest

import policies
from kvserve.policy.registry import installed

FOLDER = Path(policies.__file__).parent
README = (FOLDER.parent / "README.md").read_text(encoding="utf-8").partition("## Policies")[2].partition("\n## ")[0]
FILES = {"elastic-cache": ("elastic_cache", "fixed_point"), "scissorhands": ("scissorhands", "scissorhands_variants")}


def told():
    """Name of each policy of the table -> lines that it is said to have."""
    found = {}
    for first, last in re.findall(r"^\| (`.*?`(?:, `.*?`)*) \|.*\| ([^|]*) \|$", README, re.MULTILINE):
        found |= zip(re.findall(r"`(.*?)`", first), re.findall(r"(\d+)(?: \(\d+\))?", last), strict=True)
    return found


def test_every_policy_has_a_row():
    assert set(told()) == set(installed())


@pytest.mark.parametrize("name", sorted(installed()))
def test_lines_of_a_policy(name):
    files = [FOLDER / f"{stem}.py" for stem in FILES.get(name, (name.replace("-", "_"),))]
    assert int(told()[name]) == sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)

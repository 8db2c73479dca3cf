"""Pages are complete and fresh."""

import pytest

from handbook import families, figures, policies
from handbook.__main__ import FOLDER, MODELS, main, pages, stale, unwritten, write
from handbook.families import FAMILIES
from handbook.needs import requirements
from handbook.page import MISSING, Page
from handbook.quality import quality
from kvserve.policy import registry
from tests.zoo.shapes import SHAPES


def test_every_policy_has_its_sections():
    assert {path.stem for path in FOLDER.glob("*.md")} == {*policies.names(), "README"}
    assert all(page.headings[0] == "Cost" for page in pages()[1:])
    assert not unwritten()


def test_pages_are_fresh():
    assert not stale(), "run `make pages`"
    assert not Page(MODELS, families.blocks()).stale(), "run `make pages`"


def test_every_compared_family_is_in_the_zoo():
    """And every shape of the zoo is of a family that the page names."""
    shown = {name for name, family in FAMILIES.items() if family.compared}
    assert {shape.family for shape in SHAPES.values()} == shown


def test_a_stale_page_is_found(tmp_path):
    write(tmp_path)
    assert stale(tmp_path) == []
    text = (tmp_path / "snapkv.md").read_text()
    (tmp_path / "snapkv.md").write_text(text.replace("| `budget` |", "| `size` |"))
    (tmp_path / "gone.md").write_text("of no policy")
    (tmp_path / "h2o.md").unlink()
    assert stale(tmp_path) == ["gone.md", "h2o.md", "snapkv.md"]


def test_the_check_names_stale_pages_and_what_refreshes_them(monkeypatch, capsys):
    assert main(["--check"]) == 0
    monkeypatch.setattr("handbook.__main__.stale", lambda: ["h2o.md", "snapkv.md"])
    assert main(["--check"]) == 1
    assert "h2o.md, snapkv.md; refresh them with `make pages`" in capsys.readouterr().err


def test_a_new_policy_gets_a_page_that_says_what_is_missing(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    text = (tmp_path / "snapkv.md").read_text()
    assert "| `budget` |" in text and "## Measured here" in text
    assert text.count(MISSING) == 4 and f"## How the released code differs\n\n{MISSING}" in text
    assert "snapkv.md" in unwritten(tmp_path) and "README.md" not in unwritten(tmp_path)
    monkeypatch.setattr("handbook.__main__.unwritten", lambda: ["snapkv.md"])
    assert main(["--check"]) == 1
    assert "text is missing in docs/policies: snapkv.md" in capsys.readouterr().err


def test_what_is_written_by_hand_stays(tmp_path):
    write(tmp_path)
    path = tmp_path / "full.md"
    path.write_text(path.read_text().replace(MISSING, "Little.").replace("| `budget` |", "| `size` |"))
    assert "full.md" not in unwritten(tmp_path) and stale(tmp_path) == ["full.md"]
    write(tmp_path)
    assert path.read_text().count("Little.") == 2 and "| `budget` |" in path.read_text()


def test_a_page_without_the_marks_is_refused_and_stays(tmp_path):
    (tmp_path / "knorm.md").write_text("all by hand")
    assert "knorm.md" in stale(tmp_path)
    with pytest.raises(ValueError, match=r"knorm.md has the blocks \[\]; it must have \['class', 'figures'\]"):
        write(tmp_path)
    assert (tmp_path / "knorm.md").read_text() == "all by hand"


@pytest.mark.parametrize("name", ["triattention", "prefixkv", "h2o"])
def test_a_page_says_what_is_needed(name):
    text = policies.blocks(registry.get(name))["class"]
    wanted = {"triattention": "--kv-calibration FILE", "prefixkv": "`--kv-groups`", "h2o": "prefix-cache hit"}[name]
    assert wanted in text
    assert "| `budget` |" in text


@pytest.mark.parametrize("text", ["## Cost\n\nLittle.\n", "## Cost\n\nLittle.\n\n## When it fails\n\n", "Little."])
def test_a_page_without_a_heading_or_its_text_is_not_complete(text, tmp_path):
    (tmp_path / "full.md").write_text(text)
    assert not Page(tmp_path / "full.md", {}, policies.SECTIONS).written()


def test_requirements_are_found_by_asking_the_class():
    assert requirements(registry.get("snapkv")) == []
    groups, calibration = requirements(registry.get("prefixkv"))
    assert "--kv-groups" in groups and "only with `granularity: layer`" in groups
    assert "--kv-calibration" in calibration and "only with `profile: offline`" in calibration
    assert requirements(registry.get("scissorhands")) == []  # with a slope it takes the mean of a bundle


def test_figures_are_those_of_the_last_run_or_the_reason(monkeypatch):
    value = {"median": 0.5}
    record = {
        "complete": True,
        "date": "2026-01-02T03:04:05",
        "commit": None,
        "machine": {"cpu": "A processor", "threads": 1},
        "sizes": {"policy_output": 200},
        "refused": {"e: prefixkv": "start it with --kv-groups 4"},
        "parts": {"e": {"h2o:0.25 @ 512": {"round_ms": value}}},
    }
    cases = {f"{model}: h2o every 4": {"prefill_cpu_ratio": value} for model in ("embedded", "8B layer")}
    found = {"policies": record, "gathering": {"parts": {"f": cases}}}
    monkeypatch.setattr(figures, "_results", found.__getitem__)
    said = figures.measured("h2o")
    assert "200 tokens after the prompt" in said and "| 0.25 @ 512 |  |  | 0.5 |" in said
    assert "| embedded | 8B layer |" in said and "| `h2o every 4` | 0.50 | 0.50 |" in said
    assert figures.measured("prefixkv") == "Not measured: start it with --kv-groups 4"
    assert "make bench-policies" in figures.measured("knorm")


def test_quality_is_that_of_the_last_run(monkeypatch):
    kind = {"task": "niah", "form": "completion", "length": 512, "protocol": "inside", "policy": "h2o"}
    scores = {0.5: (0.325, None), 0.25: (0.14, "worse"), 64: (0.9, "same")}
    cells = [
        {**kind, "budget": budget, "score": {"mean": mean}, "against_random": verdict and {"verdict": verdict}}
        for budget, (mean, verdict) in scores.items()
    ]
    record = {"settings": {"model": "m", "items": 200}, "cells": cells}
    monkeypatch.setattr("handbook.quality._results", lambda: [record])
    said = quality("h2o")
    assert "| model, task, tokens, protocol | 50 % | 25 % | 64 |" in said
    assert "| m, niah, 512, `inside` | 32.5 | 14.0 ▼ | 90.0 ≈ |" in said
    assert said.startswith("**No better than `random` in any of the 2 cells")
    better = {**cells[0], "policy": "h2o recent_share=0.0", "against_random": {"verdict": "better"}}
    record["cells"] = [*cells, better]
    assert "| m, niah, 512, `inside`, with recent_share=0.0 | 32.5 |  |  |" in quality("h2o")
    assert quality("h2o").startswith("**No better than `random` in any of the 2 cells")  # by default
    assert "kvserve eval MODEL" in quality("knorm")

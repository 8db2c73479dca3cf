"""Pages are complete and fresh."""

import pytest

from handbook import figures
from handbook.__main__ import MODELS, main, stale, write
from handbook.families import FAMILIES, models
from handbook.needs import requirements
from handbook.pages import HERE, names, page, sections
from handbook.quality import quality
from kvserve.policy import registry
from tests.zoo.shapes import SHAPES


def test_every_policy_has_its_sections():
    assert {path.stem for path in HERE.glob("*.md")} == set(names())
    for name in names():
        assert sections(registry.get(name)).startswith("## Cost"), name


def test_pages_are_fresh():
    assert not stale(), "run `make pages`"
    assert MODELS.read_text(encoding="utf-8") == models(), "run `make pages`"


def test_every_compared_family_is_in_the_zoo():
    """And every shape of the zoo is of a family that the page names."""
    shown = {name for name, family in FAMILIES.items() if family.compared}
    assert {shape.family for shape in SHAPES.values()} == shown


def test_a_stale_page_is_found(tmp_path):
    write(tmp_path)
    assert stale(tmp_path) == []
    (tmp_path / "snapkv.md").write_text("old")
    (tmp_path / "gone.md").write_text("of no policy")
    (tmp_path / "h2o.md").unlink()
    assert stale(tmp_path) == ["gone.md", "h2o.md", "snapkv.md"]


def test_the_check_names_stale_pages_and_what_refreshes_them(monkeypatch, capsys):
    assert main(["--check"]) == 0
    monkeypatch.setattr("handbook.__main__.stale", lambda: ["h2o.md", "snapkv.md"])
    assert main(["--check"]) == 1
    assert "h2o.md, snapkv.md; refresh them with `make pages`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["triattention", "prefixkv", "h2o"])
def test_a_page_says_what_is_needed(name):
    text = page(name)
    wanted = {"triattention": "--kv-calibration FILE", "prefixkv": "`--kv-groups`", "h2o": "prefix-cache hit"}[name]
    assert wanted in text
    assert "| `budget` |" in text


def test_a_snippet_without_a_heading_is_refused(tmp_path, monkeypatch):
    (tmp_path / "knorm.md").write_text("## Cost\n\nLittle.\n")
    monkeypatch.setattr("handbook.pages.HERE", tmp_path)
    with pytest.raises(ValueError, match=r"handbook/knorm.md .* When it fails"):
        sections(registry.get("knorm"))


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
    monkeypatch.setattr("handbook.quality._results", lambda: record)
    said = quality("h2o")
    assert "| task, tokens, protocol | 50 % | 25 % | 64 |" in said
    assert "| niah, 512, `inside` | 32.5 | 14.0 ▼ | 90.0 ≈ |" in said
    assert "make eval" in quality("knorm")

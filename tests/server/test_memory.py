"""A server on CPU takes a modest cache, says how much, and refuses at once what could not start."""

import json
from pathlib import Path

import pytest

from server.cli import architecture, launch, memory
from server.cli.embedded import folder
from server.cli.flags import UsageError
from server.cli.memory import GIB, Need

LLAMA = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_bytes_of_a_token() -> None:
    assert memory.token_bytes(LLAMA) == 2 * 32 * 8 * 128 * 2
    assert memory.token_bytes(LLAMA, dtype="float32") == 2 * 32 * 8 * 128 * 4
    assert memory.token_bytes(LLAMA, cache="fp8") == 2 * 32 * 8 * 128
    windows = {**LLAMA, "layer_types": ["sliding_attention"] * 24 + ["full_attention"] * 8}
    assert memory.token_bytes(windows) == 2 * 8 * 8 * 128 * 2


def test_need_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    assert memory.need(str(tmp_path), LLAMA, None) == Need(1000, 8192 * 131072)
    assert memory.need(str(tmp_path), LLAMA, 1024).request == 1024 * 131072
    assert memory.need("org/name", LLAMA, 1024).weights == 0


@pytest.mark.parametrize(
    ("request_gib", "weights", "free", "engines", "expected"),
    [
        (1, 2, 20, 1, 4),  # four requests
        (3, 2, 20, 1, 9),  # half of what is free beside the weights
        (3, 2, 20, 2, 4.5),
        (0.01, 2, 20, 1, 0.25),
        (1, 30, 20, 1, 0),
    ],
)
def test_default(request_gib: float, weights: int, free: int, engines: int, expected: float) -> None:
    need = Need(weights * GIB, int(request_gib * GIB))
    assert memory.default(need, free * GIB, engines) == int(expected * GIB)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A copy of the embedded model's configuration under a name of its own."""
    found = json.loads((Path(str(folder())) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(found))
    return str(tmp_path)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.CPU_CACHE, raising=False)
    monkeypatch.setattr(memory, "free", lambda: 20 * GIB)


def test_a_named_model_gets_a_modest_cache(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = launch.parsed([model, "--max-model-len", "4096"])
    config = json.loads((Path(model) / "config.json").read_text())
    asked = max(memory.REQUESTS * 4096 * memory.token_bytes(config), memory.LEAST)
    assert args.kv_cache_memory_bytes == asked
    line = capsys.readouterr().err
    assert memory.shown(asked) in line and "--kv-cache-memory-bytes" in line and launch.CPU_CACHE in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("flags", [["--kv-cache-memory-bytes", "1000000000"], ["--gpu-memory-utilization", "0.3"]])
def test_the_users_choice_wins(model: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    args = launch.parsed([model, *flags])
    assert args.kv_cache_memory_bytes == (1_000_000_000 if "bytes" in flags[0] else None)
    assert not capsys.readouterr().err


def test_the_users_variable_wins(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.CPU_CACHE, "3")
    assert launch.parsed([model]).kv_cache_memory_bytes is None


def test_a_request_that_cannot_fit_is_said_in_one_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: GIB // 256)
    with pytest.raises(UsageError, match=r"one request of full length needs .* lower --max-model-len"):
        launch.parsed([model, "--max-model-len", "4096"])
    args = launch.parsed([model, "--max-model-len", "4096", "--kv-resident-tokens", "256"])
    assert 0 < args.kv_cache_memory_bytes <= GIB // 512


@pytest.mark.parametrize(
    ("flags", "fields", "reason"),
    [
        (
            ["--pipeline-parallel-size", "2"],
            {"layer_types": ["sliding_attention", "full_attention"]},
            "pipeline parallelism of a model",
        ),
        (["--speculative-config", '{"method": "medusa", "model": "m"}'], {}, "speculative decoding by other methods"),
        (["--kv-transfer-config", '{"kv_connector": "X", "kv_role": "kv_both"}'], {}, "KV connector X: not tested"),
        (["--runner", "pooling"], {}, "pooling models"),
        ([], {"kv_lora_rank": 512}, "multi-head latent attention"),
        ([], {"model_type": "bloom"}, "ALiBi"),
        ([], {"is_encoder_decoder": True}, "encoder-decoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_before_the_engine_starts(
    model: str, flags: list[str], fields: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(model) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert launch.serve([model, *flags]) == 2
    assert capsys.readouterr().err.strip().startswith(f"kvserve serve: kvserve does not support {reason}")


def test_the_doctor_looks_at_memory(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {finding.subject: finding for finding in architecture.model_findings(model)}
    assert found["memory"].ok is True and "20.0 GiB free" in found["memory"].text
    monkeypatch.setattr(memory, "free", lambda: GIB // 256)
    found = {finding.subject: finding for finding in architecture.model_findings(model)}
    assert found["memory"].ok is False and "--max-model-len" in found["memory"].text

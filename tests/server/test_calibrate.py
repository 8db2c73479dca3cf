"""`kvserve calibrate` against transformers' own tensors, and files that a server must refuse."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kvserve.evidence import calibration
from kvserve.startup.guard import UnsupportedError
from models import MINI
from server.cli.corpus import CorpusError, text_of, windows
from tests.server.running import forking

TEXT = "Mira keeps the green ledger in drawer 417. " * 60 + "The lamp in the hall was bought in Oslo in 1932. " * 60
WINDOW, TOKENS = 512, 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file that the command writes for a small text, and what it printed."""
    folder = tmp_path_factory.mktemp("calibrate")
    corpus, output = folder / "corpus.txt", folder / "stats.safetensors"
    corpus.write_text(TEXT, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "server.cli.main",
        "calibrate",
        str(MINI),
        "--corpus",
        str(corpus),
        "-o",
        str(output),
    ]
    command += ["--tokens", str(TOKENS), "--window", str(WINDOW), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1,024 tokens in 2 prompts" in done.stdout
    assert "calibrating: 100%" in done.stderr
    with safe_open(output, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}, output  # noqa: SIM118


@pytest.fixture(scope="module")
def reference():
    """Queries before RoPE and attention probabilities of the same windows, from transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)[:TOKENS]
    queries, mass = [[] for _ in model.model.layers], []
    for layer, block in enumerate(model.model.layers):
        block.self_attn.q_norm.register_forward_hook(lambda _m, _i, out, layer=layer: queries[layer].append(out[0]))
    with torch.no_grad():
        for start in range(0, TOKENS, WINDOW):
            out = model(torch.tensor([ids[start : start + WINDOW]]), output_attentions=True)
            mass.append(torch.stack([a[0].mean(0).sum(0) for a in out.attentions]))
    return queries, mass


def test_statistics_are_those_of_the_tensors_that_enter_rope(made, reference):
    _, tensors, _ = made
    queries, _ = reference
    assert tensors["q_abs"].shape == (4, 4, 32)
    for layer, parts in enumerate(queries):
        seen = torch.cat([part[4:] for part in parts]).double()  # the first four tokens are attention sinks
        bands = torch.complex(seen[..., :32], seen[..., 32:])
        mean = torch.complex(tensors["q_real"][layer], tensors["q_imag"][layer])
        assert torch.allclose(mean.to(torch.complex128), bands.mean(0), atol=2e-4)
        assert torch.allclose(tensors["q_abs"][layer].double(), bands.abs().mean(0), atol=2e-4)


def test_layer_budgets_hold_one_share_of_attention(made, reference):
    """Per prompt the shortest prefixes of the sorted mass that hold a share p, here by trying every p."""
    _, tensors, _ = made
    budgets, shares = tensors["budgets"], tensors["keep_share"]
    assert torch.allclose(shares.mean(dim=0), budgets, atol=2 / WINDOW)
    at = int((budgets - 0.25).abs().argmin())
    wanted = torch.zeros(4)
    for mass in reference[1]:
        body = mass[:, 1:-1].double()
        held = body.sort(dim=1, descending=True).values.cumsum(1) / body.sum(1, keepdim=True)
        lengths = min(
            ([int((row < p).sum()) + 1 for row in held] for p in torch.linspace(0.01, 0.999, 2000)),
            key=lambda found: abs(sum(found) - 4 * (128 - 2)),
        )
        wanted += (torch.tensor(lengths) + 2) / WINDOW / 2
    assert torch.allclose(shares[:, at], wanted, atol=0.01)


def test_file_is_bound_to_its_model(made, tmp_path):
    metadata, _, path = made
    config = AutoConfig.from_pretrained(MINI)
    digest = calibration.config_hash(config)
    assert metadata["config"] == digest
    assert calibration.load(path, digest).parts == ("queries", "prefixkv")
    config.num_attention_heads = 8
    with pytest.raises(UnsupportedError, match="made for another model"):
        calibration.load(path, calibration.config_hash(config))
    with pytest.raises(UnsupportedError, match="does not exist"):
        calibration.load(tmp_path / "none.safetensors", digest)
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(UnsupportedError, match="cannot be read"):
        calibration.load(tmp_path / "text.safetensors", digest)


def test_shipped_file_belongs_to_the_embedded_model():
    config = SimpleNamespace(model=str(MINI), hf_config=AutoConfig.from_pretrained(MINI))
    found = calibration.load_for(SimpleNamespace(model_config=config, additional_config={}))
    assert found is not None
    assert found.parts == ("queries", "prefixkv")
    layer = found.layer(2, slice(2, 4), torch.device("cpu"))
    assert layer["q_mean"].shape == layer["q_abs"].shape == (2, 32)
    assert layer["q_mean"].is_complex()
    assert (layer["q_mean"].abs() <= layer["q_abs"] * 1.001).all()


def test_server_refuses_another_models_file(made, tmp_path):
    """At start-up, in one sentence."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other.safetensors"
    save_file(load_file(made[2]), other, metadata={"format": calibration.FORMAT, "config": "0" * 64, "model": "other"})
    command = [sys.executable, "-m", "server.cli.main", "serve", "mini", "--kv-calibration", str(other), "--port", "0"]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"]
    env = forking({**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"})
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode != 0
    assert "was made for another model (other)" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "10"], "--window is 10; allowed: at least 64"),
        (["--tokens", "100"], "--tokens is 100; allowed: at least --window, 2048"),
        (["--corpus", "none.txt"], "--corpus none.txt does not exist"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path):
    command = [sys.executable, "-m", "server.cli.main", "calibrate", "-o", str(tmp_path / "x"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr


def test_windows():
    encode = list  # one token per character
    assert [len(w) for w in windows("x" * 250, encode, 1000, 100)] == [100, 100, 50]
    assert [len(w) for w in windows("x" * 249, encode, 1000, 100)] == [100, 100]
    assert [len(w) for w in windows("x" * 2500, encode, 300, 100)] == [100, 100, 100]
    with pytest.raises(CorpusError, match="has 30 tokens; at least 50"):
        windows("x" * 30, encode, 1000, 100)
    assert len(text_of(None)) > 500_000

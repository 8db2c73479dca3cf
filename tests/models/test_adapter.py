"""`kvserve train-summary` on a tiny random model: what is learned, what an interruption costs, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from models import MINI  # noqa: E402
from models.summary.adapter import Adapter, Recipe, ResumeError, losses  # noqa: E402
from models.summary.command import convert, train  # noqa: E402
from models.summary.file import BESIDE, SummaryFileError, load  # noqa: E402
from models.summary.network import RowLayout, SummaryRows, kinds_of, read  # noqa: E402
from models.summary.rows import TextError, rows_of  # noqa: E402
from models.training.network import Network  # noqa: E402
from models.training.reading import ReadingError, read_network, shape_of  # noqa: E402
from tests.engine.reference.summaries import ksa_logits  # noqa: E402

TEXT = "Mira keeps the green ledger in drawer 417. The lamp in the hall was bought in Oslo. " * 40
LAYOUT = RowLayout(kinds_of("sf", 2), window=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Qwen3 with the embedded model's tokenizer, whose output embedding is its own."""
    made = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=2048, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=48, initializer_range=0.3, tie_word_embeddings=False, rope_theta=1e4,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(made)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (made / name).write_bytes((MINI / name).read_bytes())
    (made / "text.txt").write_text(TEXT, encoding="utf-8")
    return made


def adapter(folder, checkpoint, steps=12, dtype=torch.float32, **changed):
    network = read_network(folder, dtype)
    rows, _ = rows_of(folder, folder / "text.txt", 2, 64, changed.get("seed", 0))
    return Adapter(network, Recipe(LAYOUT, steps, rate=1e-2, warm_up=2, **changed), rows, checkpoint, {"text": "text"})


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["s", "sf", "fs"])
def test_the_pass_is_that_of_the_reference(folder, pattern):
    network = read_network(folder, torch.float32)
    own, layout = SummaryRows(network), RowLayout(kinds_of(pattern, 2), window=2)
    for weight in own.parameters():
        weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    ids = torch.randint(2048, (2, 64), generator=torch.Generator().manual_seed(2))
    ours = network.predict(read(network, own, ids, layout, torch.float32).hidden, torch.arange(128)).view(2, 64, -1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for row, expected in zip(ids.tolist(), ours, strict=True):
        theirs = ksa_logits(model, own.tensors(), row, 2, layout.kinds)
        torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_divergence_falls_and_the_model_stays(folder, tmp_path, dtype):
    run = adapter(folder, tmp_path / "checkpoint", steps=30, dtype=dtype)
    before = {name: weight.clone() for name, weight in run.network.state_dict().items()}
    first = losses(run.network, run.own, LAYOUT, run.batch(-1))
    while not run.done:
        run.advance()
    last = losses(run.network, run.own, LAYOUT, run.batch(-1))
    assert last["kl"] < 0.8 * first["kl"]
    assert all(torch.equal(weight, before[name]) for name, weight in run.network.state_dict().items())


def test_an_interrupted_run_ends_where_it_would_have(folder, tmp_path):
    whole, part = adapter(folder, tmp_path / "whole"), adapter(folder, tmp_path / "part")
    while not whole.done:
        whole.advance()
    for _ in range(5):
        part.advance()
    part.save()
    resumed = adapter(folder, tmp_path / "part")
    assert resumed.step == 5
    while not resumed.done:
        resumed.advance()
    for name, tensor in whole.own.tensors().items():
        assert torch.equal(tensor, resumed.own.tensors()[name])


def test_another_runs_checkpoint_is_refused(folder, tmp_path):
    adapter(folder, tmp_path / "checkpoint").save()
    with pytest.raises(ResumeError, match="another seed; go on with the same, or delete it"):
        adapter(folder, tmp_path / "checkpoint", seed=1)


def command(folder, *more):
    arguments = ["--text", str(folder / "text.txt"), "--tokens", "64", "--window", "2", "--layers", "sf", "--rows", "1"]
    return [str(folder), *arguments, *more]


def test_the_command_writes_a_file_that_loads(folder, tmp_path, capsys):
    out = tmp_path / "summary.safetensors"
    assert train(command(folder, "--steps", "3", "-o", str(out))) == 0
    printed = capsys.readouterr().out
    assert "layers sf" in printed
    assert "with summaries" in printed
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    tensors, layout, mix = load(out, folder, shape)
    assert (layout.kinds, layout.window, layout.chunk, mix) == (("summary", "full"), 2, 8, 1.0)
    assert tensors["layers.1.k_proj"].shape == (32, 32)
    assert not out.with_name(out.name + ".checkpoint").exists()
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["tokens"] == "192"
        assert file.metadata()["text"] == "text.txt"


def test_ctrl_c_saves_and_the_same_command_goes_on(folder, tmp_path):
    out = tmp_path / "summary.safetensors"
    line = [
        sys.executable,
        "-m",
        "server.cli.main",
        "train-summary",
        *command(folder, "--steps", "200", "-o", str(out)),
    ]
    checkpoint = out.with_name(out.name + ".checkpoint")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "the same command goes on" in printed
    assert not out.exists()
    state = torch.load(checkpoint, weights_only=True)
    assert 50 <= state["step"] < 200
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{state['step']}/200" in done.stderr
    assert set(load_file(out)) == {"embedding"} | {
        f"layers.{layer}.{name}_proj" for layer in range(2) for name in ("q", "k", "v")
    }


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--tokens", "100"], 2, "--tokens is 100; allowed: a multiple of the window's 16 tokens, at least 32"),
        (["--chunk", "1"], 2, "--chunk is 1; allowed: at least 2"),
        (["--steps", "0"], 2, "--steps is 0; allowed: at least 1"),
        (["--rate", "2"], 2, "--rate is 2.0; allowed: above 0, below 1"),
        (["--layers", "sx"], 1, "layers must be a pattern of s (summary) and f (full) that divides 2, got 'sx'"),
        (["--layers", "sss"], 1, "that divides 2, got 'sss'"),
        (["--text", "none.txt"], 1, "--text none.txt"),
        (["--tokens", "65536"], 1, "tokens; more than 65536 are needed"),
    ],
)
def test_wrong_usage(folder, more, code, message, capsys):
    assert train(command(folder, *more)) == code
    assert message in capsys.readouterr().err


def test_no_folder_and_no_qwen(folder, tmp_path, capsys):
    assert train([str(tmp_path)]) == 2
    assert "allowed: a folder with a config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert train([str(tmp_path)]) == 1
    assert "model_type is 'llama'; allowed: 'qwen3'" in capsys.readouterr().err
    assert convert([str(folder), "-o", str(tmp_path / "out")]) == 1
    assert "no KSA checkpoint" in capsys.readouterr().err


def test_generated_rows_for_the_family_alone(folder, tmp_path):
    assert rows_of(MINI, None, 1, 128, 0)[1] == "generated tasks"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(TextError, match="has no tokenizer"):
        rows_of(tmp_path, None, 1, 128, 0)


def test_a_file_of_another_model_or_shape_is_refused(folder, tmp_path):
    out = tmp_path / "summary.safetensors"
    assert train(command(folder, "--steps", "1", "-o", str(out))) == 0
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    with pytest.raises(SummaryFileError, match="was made for another model"):
        load(out, MINI, shape)
    mini = shape_of(json.loads((MINI / "config.json").read_text()))
    with pytest.raises(SummaryFileError, match="the model needs"):
        load(out, folder, mini)
    with pytest.raises(SummaryFileError, match="no file of summary parameters"):
        load(MINI / "kvserve" / "calibration.safetensors", MINI, mini)
    assert BESIDE == "kvserve/summary.safetensors"


def test_a_model_that_is_incomplete_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ReadingError, match=r"no \*\.safetensors file"):
        read_network(tmp_path)
    assert isinstance(read_network(folder), Network)

"""A published KSA checkpoint, tiny but of the exact shape: what is converted computes what the checkpoint says."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from kvserve.startup.guard import UnsupportedError  # noqa: E402
from models.summary.file import BESIDE, SummaryFileError, load  # noqa: E402
from models.summary.ksa_checkpoint import convert  # noqa: E402
from models.summary.network import SummaryRows, read  # noqa: E402
from models.training.reading import ReadingError, read_network, shape_of  # noqa: E402
from tests.engine.reference.summaries import ksa_logits  # noqa: E402

VOCABULARY, LAYERS = 64, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as the released conversion writes it: Qwen3, more fields and weights, one more row of the embedding."""
    folder = tmp_path_factory.mktemp("ksa")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY + 1, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=48, initializer_range=0.3, tie_word_embeddings=True,
        rope_theta=1e4,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight", None)
    for layer in range(LAYERS):
        for name, rows in (("q", 64), ("k", 32), ("v", 32)):
            weights[f"model.layers.{layer}.self_attn.{name}_proj_summary.weight"] = 0.3 * torch.randn(rows, 32)
    (folder / "model.safetensors").unlink()
    halves = sorted(weights)[::2], sorted(weights)[1::2]
    for number, names in enumerate(halves):
        save_file({name: weights[name] for name in names}, folder / f"model-0000{number + 1}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "modeling_qwen3sa.py").write_text("raise RuntimeError('this must never run')")
    (folder / "tokenizer.json").write_text("{}")
    described(folder, {
        "use_summary_attention": True, "summary_chunk_size": 8, "summary_token_num": 1,
        "summary_token_begin": VOCABULARY, "summary_sliding_chunk_num": "([2]*3+[1024]*1)*1",
        "summary_chunk_position_ids_type": "origin", "summary_token_position_ids_type": "last_chunk_slice_right",
        "summary_independent_parameters": True, "summary_independent_attention_layernorm": False,
        "summary_attention_mode": "kernel", "mix_coeff": 0.75, "truncate_predict_nums": VOCABULARY,
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen3sa.Qwen3ForCausalLM"},
    })  # fmt: skip
    return folder


def described(folder, fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def changed(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "changed")
    return tmp_path / "changed"


@torch.no_grad()
def test_what_is_converted_is_a_plain_model_with_a_summary_file(checkpoint, tmp_path):
    found = convert(checkpoint, tmp_path)
    assert (found.chunk, found.window, found.full_layers) == (8, 2, (3,))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == VOCABULARY
    assert not [field for field in config if "summary" in field or field in ("mix_coeff", "auto_map")]
    assert not list(tmp_path.glob("*.py"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tensors, layout, mix = load(tmp_path / BESIDE, tmp_path, shape_of(config))
    assert mix == 0.75
    ids = torch.randint(VOCABULARY, (61,)).tolist()
    ours = ksa_logits(model, tensors, ids, layout.window, layout.kinds, layout.chunk, mix)
    assert ours.shape == (61, VOCABULARY)
    stored = raw(checkpoint)
    theirs = ksa_logits(model, stored, ids, 2, ("summary",) * 3 + ("full",), 8, 0.75)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.model.embed_tokens.weight, embedding(checkpoint)[:VOCABULARY])


def raw(folder):
    """The summary's parameters, straight from the checkpoint's names."""
    weights = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    found = {
        f"layers.{layer}.{name}": weights[f"model.layers.{layer}.self_attn.{name}_summary.weight"]
        for layer in range(LAYERS)
        for name in ("q_proj", "k_proj", "v_proj")
    }
    return found | {"embedding": embedding(folder)[VOCABULARY:]}


def embedding(folder):
    name = "model.embed_tokens.weight"
    return next(w[name] for w in map(load_file, folder.glob("*.safetensors")) if name in w)


@torch.no_grad()
def test_the_training_code_reads_what_was_converted(checkpoint, tmp_path):
    """Also the file's layout and its mixture."""
    described_mix = {"mix_coeff": 1.0}
    shutil.copytree(checkpoint, tmp_path / "source")
    described(tmp_path / "source", described_mix)
    convert(tmp_path / "source", tmp_path / "target")
    network = read_network(tmp_path / "target", torch.float32)
    tensors, layout, _ = load(tmp_path / "target" / BESIDE, tmp_path / "target", network.shape)
    own = SummaryRows(network)
    own.take(tensors)
    ids = torch.randint(VOCABULARY, (1, 64))
    ours = network.predict(read(network, own, ids, layout, torch.float32).hidden, torch.arange(64))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float32).eval()
    theirs = ksa_logits(model, tensors, ids[0].tolist(), layout.window, layout.kinds)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_shared_projections_become_the_models(changed, tmp_path):
    described(changed, {"summary_independent_parameters": False})
    convert(changed, tmp_path / "target")
    network = read_network(tmp_path / "target", torch.float32)
    tensors, _, mix = load(tmp_path / "target" / BESIDE, tmp_path / "target", network.shape)
    assert mix == 0
    assert torch.equal(tensors["layers.1.k_proj"], network.blocks[1].attention.k.weight)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"summary_token_num": 2}, UnsupportedError, "summary_token_num is 2"),
        ({"use_summary_attention": False}, UnsupportedError, "no KSA checkpoint"),
        ({"summary_token_begin": VOCABULARY + 1}, ReadingError, "the summary's is missing"),
        ({"model_type": "llama"}, ReadingError, "model_type is 'llama'"),
        ({"num_key_value_heads": 4}, SummaryFileError, r"k_proj has shape \(32, 32\); the model needs \(64, 32\)"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(changed, tmp_path, fields, error, message):
    described(changed, fields)
    with pytest.raises(error, match=message):
        convert(changed, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_missing_projection_is_named(changed, tmp_path):
    for path in changed.glob("*.safetensors"):
        weights = load_file(path)
        weights.pop("model.layers.2.self_attn.v_proj_summary.weight", None)
        save_file(weights, path)
    with pytest.raises(ReadingError, match=r"no weight model\.layers\.2\.self_attn\.v_proj_summary\.weight"):
        convert(changed, tmp_path / "target")

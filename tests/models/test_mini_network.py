"""The trained network and its structured start."""

import pytest

torch = pytest.importorskip("torch")

from models import structure  # noqa: E402
from models.export import export  # noqa: E402
from models.network import Network, Shape  # noqa: E402


@pytest.fixture(scope="module")
def network() -> Network:
    torch.set_num_threads(1)
    made = Network(Shape())
    structure.initialise(made, seed=0)
    return made


@torch.no_grad()
def test_the_structured_start_repeats_what_it_saw(network):
    """Random tokens twice in a row: untrained, the network already continues the second copy."""
    once = torch.randint(10, 2048, (1, 256), generator=torch.Generator().manual_seed(1))
    ids = torch.cat((once, once), 1)
    choice = network(ids, torch.arange(256, 511)).argmax(-1)
    assert (choice == ids[0, 257:]).float().mean() > 0.9


@torch.no_grad()
def test_the_export_computes_the_same(network, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    export(network.state_dict(), network.shape, tokenizer.backend_tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    rounded = Network(Shape())
    rounded.load_state_dict({name: w.bfloat16().float() for name, w in network.state_dict().items()})
    ids = torch.randint(10, 2048, (1, 64), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rounded(ids, torch.arange(64)), theirs(ids).logits[0], atol=2e-3, rtol=1e-3)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads=2"):
        Shape(heads=3)

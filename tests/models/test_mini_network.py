"""The trained networks, their structured start, and the code that makes training fast."""

import pytest

torch = pytest.importorskip("torch")

from models.training import structure  # noqa: E402
from models.training.attention import BLOCK, CausalAttention  # noqa: E402
from models.training.export import export  # noqa: E402
from models.training.family import FAMILY  # noqa: E402
from models.training.network import Network, NetworkShape, Norm  # noqa: E402


@pytest.fixture(scope="module", params=FAMILY)
def network(request) -> Network:
    torch.set_num_threads(1)
    made = Network(FAMILY[request.param].shape)
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
    rounded = Network(network.shape)
    rounded.load_state_dict({name: w.bfloat16().float() for name, w in network.state_dict().items()})
    ids = torch.randint(10, 2048, (1, 64), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rounded(ids, torch.arange(64)), theirs(ids).logits[0], atol=2e-3, rtol=1e-3)


def test_attention_in_blocks_is_attention():
    """Output and all three gradients, over more than one block and a last one that is not full."""
    made = torch.randn(4, 2, 3, BLOCK + 40, 16, generator=torch.Generator().manual_seed(3))
    ours = [x.clone().requires_grad_() for x in made[:3]]
    theirs = [x.clone().requires_grad_() for x in made[:3]]
    mixed = CausalAttention.apply(*ours)
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=True)
    torch.testing.assert_close(mixed, expected)
    for output in (mixed, expected):
        output.backward(made[3])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_the_norm_is_the_rms_norm():
    made = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(4))
    norm, expected = Norm(16, 1e-6), torch.nn.RMSNorm(16, 1e-6)
    ours, theirs = made[0].clone().requires_grad_(), made[0].clone().requires_grad_()
    with torch.no_grad():
        for module in (norm, expected):
            module.weight.copy_(torch.linspace(0.5, 2, 16))
    norm(ours).backward(made[1])
    expected(theirs).backward(made[1])
    torch.testing.assert_close(norm(ours), expected(theirs))
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(norm.weight.grad, expected.weight.grad)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads must be a multiple of kv_heads=2"):
        NetworkShape(heads=3)

"""A network trained with its summaries: its attention, its structured start, its run, and how it is measured."""

import pytest

torch = pytest.importorskip("torch")

from models.summary import joint  # noqa: E402
from models.summary import structure as summary_structure  # noqa: E402
from models.summary.attention import chunk_attention, window_attention  # noqa: E402
from models.summary.evaluate import items_at, ranges, right  # noqa: E402
from models.summary.file import BESIDE, load  # noqa: E402
from models.summary.joint import SHAPE, Joint, TextPair  # noqa: E402
from models.summary.network import RowLayout, SummaryRows, kinds_of, read  # noqa: E402
from models.training.reading import read_network  # noqa: E402
from models.training.stages import TrainingPlan, TrainingStage  # noqa: E402
from models.training.train import train  # noqa: E402


@pytest.fixture(scope="module")
def pair() -> TextPair:
    torch.set_num_threads(1)
    made = TextPair(SHAPE)
    summary_structure.initialise(made.network, made.summaries, seed=0)
    return made


def test_attention_in_blocks_is_attention_under_a_mask():
    """Against scaled_dot_product_attention, with and without summaries, gradients included."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, k_s, v_s = (
        torch.randn(2, heads, tokens, 8, generator=generator)
        for heads, tokens in ((4, 48), (2, 48), (2, 48), (2, 12), (2, 12))
    )
    chunk, text = torch.arange(48) // 4, torch.arange(48)
    near = (text[:, None] >= text) & (chunk[:, None] - 2 <= chunk)
    far = torch.arange(12) < chunk[:, None] - 2
    for summaries, keys, values, mask in (
        ((k_s, v_s), torch.cat((k, k_s), 2), torch.cat((v, v_s), 2), torch.cat((near, far), 1)),
        (None, k, v, near),
    ):
        ours, theirs = q.clone().requires_grad_(), q.clone().requires_grad_()
        mixed = window_attention(ours, k, v, summaries, 2, 4)
        expected = torch.nn.functional.scaled_dot_product_attention(theirs, keys, values, mask, enable_gqa=True)
        torch.testing.assert_close(mixed, expected)
        mixed.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="multiple of the window's 8, got 12"):
        window_attention(q[:, :, :12], k[:, :, :12], v[:, :, :12], None, 2, 4)


def test_a_summary_reads_its_chunk_and_itself():
    generator = torch.Generator().manual_seed(1)
    q, k, v, k_s, v_s = (
        torch.randn(1, heads, tokens, 8, generator=generator)
        for heads, tokens in ((4, 3), (2, 12), (2, 12), (2, 3), (2, 3))
    )
    mixed = chunk_attention(q, k, v, k_s, v_s)
    for chunk in range(3):
        rows = slice(4 * chunk, 4 * chunk + 4)
        keys, values = (torch.cat((text[:, :, rows], own[:, :, chunk, None]), 2) for text, own in ((k, k_s), (v, v_s)))
        alone = torch.nn.functional.scaled_dot_product_attention(q[:, :, chunk, None], keys, values, enable_gqa=True)
        torch.testing.assert_close(mixed[:, :, chunk], alone[:, :, 0])


@torch.no_grad()
def test_the_structured_start_finds_through_summaries_what_left_the_window(pair):
    """Random tokens twice in a row: the second copy from text, from summaries, and, the control, from the window."""
    once = torch.randint(10, 2048, (4, 128), generator=torch.Generator().manual_seed(1))
    ids = torch.cat((once, once), 1)
    at = torch.arange(1024).view(4, 256)[:, 128:255].flatten()
    shares = []
    for own, layout in (
        (None, None),
        (pair.summaries, joint.LAYOUT),
        (pair.summaries, RowLayout(kinds_of("s", 4), summaries=False)),
    ):
        choice = pair.network.predict(read(pair.network, own, ids, layout, torch.float32).hidden, at).argmax(-1)
        shares.append((choice == ids[:, 129:].flatten()).float().mean().item())
    full, summaries, window = shares
    assert full > 0.9
    assert summaries > 0.1  # of 2,048 tokens, before any training
    assert window < 0.01


def test_a_run_of_two_steps_writes_a_folder_that_loads(tokenizer, tmp_path):
    plan = TrainingPlan(
        stages=(TrainingStage(tokens=128, rows=4, steps=2, rate=1e-3, end_rate=1e-3, mix={"mqar": 1.0}),)
    )
    (tmp_path / "work").mkdir()
    tokenizer.backend_tokenizer.save(str(tmp_path / "work" / "tokenizer.json"))
    train(SHAPE, plan, tmp_path / "work", tmp_path / "model", False, Joint)
    network = read_network(tmp_path / "model", torch.float32)
    tensors, layout, mix = load(tmp_path / "model" / BESIDE, tmp_path / "model", network.shape)
    assert (layout, mix) == (joint.LAYOUT, 1.0)
    pair = TextPair(SHAPE)
    pair.load_state_dict(torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)["average"])
    torch.testing.assert_close(tensors["embedding"], pair.summaries.embedding.detach(), atol=1e-2, rtol=1e-2)
    assert (tmp_path / "model" / "recipe.json").exists()


def test_ranges_of_distances():
    assert ranges(512, 64) == [(0, 64), (65, 256), (257, 512)]
    assert ranges(1024, 64)[-1] == (513, 1024)


@torch.no_grad()
def test_items_lie_where_they_should_and_are_judged(world, mini):
    """The whole cache answers; a window of 64 tokens answers only what lies inside."""
    network = read_network(mini, torch.float32)
    own, window = SummaryRows(network), RowLayout(kinds_of("s", 4), summaries=False)
    inside, outside = (items_at(world, "completion", 256, *each, 4) for each in ((0, 40), (100, 256)))
    assert all(all(right(network, None, window, item)) for item in inside + outside)
    assert all(all(right(network, own, window, item)) for item in inside)
    assert not any(all(right(network, own, window, item)) for item in outside)

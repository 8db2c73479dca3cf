"""The reference of summary attention against the paper's example, the plain model, and a second way to compute it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.engine.reference.summaries import expected_entries, greedy, ksa, ksa_logits, visible

WINDOW, CHUNK, KINDS = 2, 8, ("summary", "full", "summary")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=48, initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def parameters():
    generator = torch.Generator().manual_seed(1)
    sizes = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
    made = {
        f"layers.{layer}.{name}": 0.3 * torch.randn(size, 32, generator=generator)
        for layer in range(3)
        for name, size in sizes.items()
    }
    return made | {"embedding": torch.randn(1, 32, generator=generator)}


@pytest.fixture(scope="module")
def ids():
    return torch.randint(64, (61,), generator=torch.Generator().manual_seed(2)).tolist()


def test_the_mask_is_that_of_the_released_code():
    """Chunks of 2, a window of 1: rows and keys in the order t0 t1 s0 t2 t3 s1 t4 t5 s2."""
    wanted = "100000000 110000000 111000000 110100000 110110000 000111000 001110100 001110110 000000111"
    order = [0, 1, 6, 2, 3, 7, 4, 5, 8]
    seen = visible(6, 1, "summary", 2)[order][:, order]
    assert [[str(int(sees)) for sees in row] for row in seen] == [list(row) for row in wanted.split()]


def test_in_a_full_layer_text_sees_all_text_and_no_summary():
    seen = visible(6, 1, "full", 2)
    assert torch.equal(seen[:6, :6], torch.ones(6, 6, dtype=torch.bool).tril())
    assert not seen[:6, 6:].any()
    assert torch.equal(seen[6:], visible(6, 1, "summary", 2)[6:])


def test_every_past_chunk_is_visible_once():
    seen = visible(61, WINDOW, "summary")
    for token in range(61):
        for chunk in range(token // CHUNK):
            as_text = seen[token, chunk * CHUNK : (chunk + 1) * CHUNK]
            assert bool(as_text.all()) != bool(seen[token, 61 + chunk])
            assert bool(as_text.any()) == bool(as_text.all())
        visible_entries = int(seen[token].sum()) - 1
        assert visible_entries == expected_entries(token, WINDOW)


def test_up_to_the_window_it_is_the_plain_model(model, parameters, ids):
    short = ids[: (WINDOW + 1) * CHUNK]
    with torch.no_grad():
        plain = model(torch.tensor([ids])).logits[0]
    ours = ksa_logits(model, parameters, short, WINDOW, KINDS)
    torch.testing.assert_close(ours, plain[: len(short)], atol=1e-5, rtol=1e-4)
    longer = ksa_logits(model, parameters, ids, WINDOW, KINDS)
    assert (longer[len(short) :] - plain[len(short) :]).abs().amax(-1).min() > 1e-3


def test_a_longer_text_does_not_change_what_was_before(model, parameters, ids):
    """Decoding is prefill: also at lengths of 0 and 7 more than whole chunks, and across the window's edge."""
    whole = ksa_logits(model, parameters, ids, WINDOW, KINDS)
    for length in range(1, len(ids) + 1):
        part = ksa_logits(model, parameters, ids[:length], WINDOW, KINDS)
        torch.testing.assert_close(part, whole[:length], atol=1e-5, rtol=1e-4)


def test_summaries_alone_matter(model, parameters, ids):
    """Other summary parameters change what lies behind the window, and nothing before it."""
    other = {name: tensor + 0.1 for name, tensor in parameters.items()}
    ours, theirs = (ksa_logits(model, made, ids, WINDOW, KINDS) for made in (parameters, other))
    edge = (WINDOW + 1) * CHUNK
    torch.testing.assert_close(ours[:edge], theirs[:edge])
    assert (ours[edge:] - theirs[edge:]).abs().amax(-1).min() > 1e-4


def test_without_a_mixture_only_the_embedding_counts(model, parameters, ids):
    other = {name: tensor if name == "embedding" else tensor + 1 for name, tensor in parameters.items()}
    ours, theirs = (ksa_logits(model, made, ids, WINDOW, KINDS, mix=0.0) for made in (parameters, other))
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_token_by_token_with_a_ring_is_the_same(model, parameters, ids):
    """The paper's decoding loop with lists for the caches: text that left the window is thrown away."""
    whole = ksa(model, parameters, ids, WINDOW, KINDS)
    caches = [{"text": [], "summaries": []} for _ in KINDS]
    for position, token in enumerate(ids):
        logits = _step(model, parameters, caches, token, position)
        torch.testing.assert_close(logits, whole.logits[position], atol=1e-5, rtol=1e-4)
        held = len(caches[0]["text"]) + len(caches[0]["summaries"])
        assert held == expected_entries(position + 1, WINDOW)
    for layer, cache in enumerate(caches):
        if KINDS[layer] == "summary":
            keys = torch.stack([k for k, _ in cache["summaries"]], 1)
            torch.testing.assert_close(keys, whole.keys[layer][:, : keys.shape[1]], atol=1e-5, rtol=1e-4)


def _step(model, parameters, caches, token: int, position: int):
    """One token; when it ends a chunk, the summary of the chunk that leaves the window is computed from its text."""
    x, turn = model.model.embed_tokens.weight[token], _turn(model, position)
    for layer, (block, cache) in enumerate(zip(model.model.layers, caches, strict=True)):
        attention, y = block.self_attn, block.input_layernorm(x)
        q, k, v = (getattr(attention, name)(y) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = _rope(attention.q_norm(q.view(4, 16)), turn), _rope(attention.k_norm(k.view(2, 16)), turn)
        cache["text"].append((k, v.view(2, 16)))
        seen = cache["summaries"] + cache["text"] if KINDS[layer] == "summary" else cache["text"]
        x = x + attention.o_proj(_read(q, seen))
        x = x + block.mlp(block.post_attention_layernorm(x))
    if (position + 1) % CHUNK == 0 and position // CHUNK >= WINDOW:
        _summarise(model, parameters, caches, position // CHUNK - WINDOW)
    return model.lm_head(model.model.norm(x))


def _summarise(model, parameters, caches, chunk: int) -> None:
    """The summary of one chunk, from its cached text; then the text goes from the summary layers."""
    x, turn = parameters["embedding"][0], _turn(model, chunk * CHUNK + CHUNK - 1)
    for layer, (block, cache) in enumerate(zip(model.model.layers, caches, strict=True)):
        attention, y = block.self_attn, block.input_layernorm(x)
        q, k, v = (F.linear(y, parameters[f"layers.{layer}.{name}"]) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = _rope(attention.q_norm(q.view(4, 16)), turn), _rope(attention.k_norm(k.view(2, 16)), turn)
        own = (k, v.view(2, 16))
        first = 0 if KINDS[layer] == "summary" else chunk * CHUNK
        x = x + attention.o_proj(_read(q, [*cache["text"][first : first + CHUNK], own]))
        x = x + block.mlp(block.post_attention_layernorm(x))
        if KINDS[layer] == "summary":
            del cache["text"][:CHUNK]
            cache["summaries"].append(own)


def _turn(model, position: int):
    cosine, sine = model.model.rotary_emb(torch.zeros(1), torch.tensor([[position]]))
    return cosine[0, 0], sine[0, 0]


def _rope(x, turn):
    half = x.shape[-1] // 2
    return x * turn[0] + torch.cat((-x[..., half:], x[..., :half]), -1) * turn[1]


def _read(q, entries):
    keys, values = (torch.stack(part, 1).repeat_interleave(2, 0) for part in zip(*entries, strict=True))
    return ((q[:, None] * keys).sum(-1) / 4).softmax(-1)[:, None].matmul(values).flatten()


def test_a_mixture_is_of_normed_queries_and_keys(model, parameters, ids):
    """As in the released code: what is scaled before its norm counts as before, also in a mixture."""
    grown = {name: 3 * tensor if name.endswith(("q_proj", "k_proj")) else tensor for name, tensor in parameters.items()}
    ours, theirs = (ksa_logits(model, made, ids, WINDOW, KINDS, mix=0.3) for made in (parameters, grown))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_greedy_continues_with_the_most_likely(model, parameters, ids):
    made = greedy(model, parameters, ids, 5, WINDOW, KINDS)
    choices = ksa_logits(model, parameters, ids + made, WINDOW, KINDS).argmax(-1)
    assert made == choices[len(ids) - 1 : -1].tolist()

"""The reference engine against plain forward passes of the same model."""

import pytest
import torch

from models import MINI
from tests.engine import reference
from tests.engine.reference import trigonometry
from tests.engine.reference.rules import each

PROMPT = [11 + (37 * i * i + 5 * i) % 1900 for i in range(90)]
LENGTH = 20


@pytest.fixture(scope="module")
def model():
    return reference.load(str(MINI))


@torch.no_grad()
def whole_pass(model, tokens, last_seen):
    """Log-probabilities of the generated tokens from one pass without a cache, and its attentions.

    last_seen[layer][head][position]: the last query that sees a position.
    """
    size = len(tokens)
    query, slot = torch.arange(size)[:, None], torch.arange(size)[None, :]
    hooks = []
    for block, layer in zip(model.model.layers, last_seen, strict=True):
        group = model.config.num_attention_heads // len(layer)
        hidden = [(slot > query) | (query > torch.tensor(head)[None, :]) for head in layer for _ in range(group)]
        mask = torch.zeros(1, len(hidden), size, size).masked_fill(torch.stack(hidden)[None], float("-inf"))
        hook = block.self_attn.register_forward_pre_hook(
            lambda _m, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
        hooks.append(hook)
    out = model(torch.tensor([tokens]), output_attentions=True)
    for hook in hooks:
        hook.remove()
    logp = torch.log_softmax(out.logits[0].float(), -1)
    said = [float(logp[i - 1, tokens[i]]) for i in range(len(PROMPT), size)]
    assert [int(row.argmax()) for row in logp[len(PROMPT) - 1 : -1]] == tokens[len(PROMPT) :]
    return said, out.attentions


def last_queries(rounds, layers=4, heads=2):
    """From the rounds of a run: the last query that saw each position."""
    size = len(PROMPT) + LENGTH
    seen = [[[size] * size for _ in range(heads)] for _ in range(layers)]
    for logical, keep in rounds:
        for (layer, head), kept in keep.items():
            for p in set(range(logical)) - set(kept):
                seen[layer][head][p] = min(seen[layer][head][p], logical - 1)
    return seen


def check(model, act):
    """A run of the reference equals one pass in which dropped tokens are masked; returns run and attentions."""
    tokens, logps, rounds, trace = reference.traced(model, PROMPT, LENGTH, act)
    wanted, attentions = whole_pass(model, PROMPT + tokens, last_queries(rounds))
    assert max(abs(a - b) for a, b in zip(logps, wanted, strict=True)) < 1e-4
    return tokens, logps, rounds, trace, attentions


def cut(trace, counts):
    """Layer l keeps the first 2 and the newest of `counts[l]`."""
    return each(trace, lambda layer, _head, held: held[:2] + held[len(held) - counts[layer] + 2 :])


def test_pruning_nothing_is_the_plain_model(model):
    _, _, rounds, _, _ = check(model, lambda *_: None)
    assert not rounds


def test_uneven_layers_are_masked_layers(model):
    def act(trace, logical, physical, fresh):
        return cut(trace, [20, 40, 89, 60]) if fresh else cut(trace, [22, 41, 97, 30]) if logical == 100 else None

    _, logps, rounds, trace, _ = check(model, act)
    assert [logical for logical, _ in rounds] == [90, 100]
    assert [trace.held(layer) for layer in range(4)] == [31, 50, 106, 39]
    assert max(abs(a - b) for a, b in zip(logps, reference.run(model, PROMPT, LENGTH, lambda *_: None)[1], strict=True))


def test_heads_of_a_layer_choose_for_themselves(model):
    def act(trace, logical, physical, fresh):
        return each(trace, lambda _layer, head, held: held[head : len(held) - 30 + head] + held[-4:]) if fresh else None

    check(model, act)


def test_unchanged_layers_are_not_in_a_round(model):
    act = lambda trace, _l, _p, fresh: cut(trace, [20, 90, 90, 40]) if fresh else None  # noqa: E731
    rounds = reference.run(model, PROMPT, 3, act)[2]
    assert [sorted(keep) for _, keep in rounds] == [[(0, 0), (0, 1), (3, 0), (3, 1)]]


def merging(blend):
    """Drops all but 60 tokens; `blend` of what they hold takes its place."""

    def act(trace, logical, physical, fresh):
        if not fresh:
            return None
        keep = cut(trace, [60] * 4)
        slots = {
            (layer, head): (trace.keys[layer][head, at], trace.values[layer][head, at])
            for (layer, head), at in keep.items()
        }
        return reference.Merge(keep, {place: (blend(k), blend(v)) for place, (k, v) in slots.items()})

    return act


def test_merging_a_token_with_its_copy_changes_nothing(model):
    plain = reference.run(model, PROMPT, LENGTH, lambda trace, _l, _p, fresh: cut(trace, [60] * 4) if fresh else None)
    assert reference.run(model, PROMPT, LENGTH, merging(lambda x: torch.stack([x, x]).mean(dim=0))) == plain
    other = reference.run(model, PROMPT, LENGTH, merging(lambda x: x.roll(1, 0)))
    assert other[1] != plain[1]


def test_new_contents_are_what_later_queries_attend_to(model):
    """Two slots that swap their keys and values give the same answer: slots have no order of their own."""
    plain = reference.run(model, PROMPT, LENGTH, merging(lambda x: x))
    turned = reference.run(model, PROMPT, LENGTH, merging(lambda x: x.flip(0)))
    assert turned[0] == plain[0]
    assert max(abs(a - b) for a, b in zip(turned[1], plain[1], strict=True)) < 1e-4


def test_mass_is_the_column_sums(model):
    """Of what a pass without a cache attends to; every query spends 1."""
    _, _, rounds, trace, attentions = check(model, reference.h2o(60, 16))
    seen = len(PROMPT) + LENGTH - 1  # the last token said was not fed back
    assert len(rounds) == 2
    for layer, mass in enumerate(trace.mass):
        columns = attentions[layer][0, :, :seen, :seen].double().sum(dim=1)
        assert torch.allclose(mass, columns, atol=1e-4)
        assert torch.allclose(mass.sum(dim=1), torch.full((4,), float(seen), dtype=torch.float64), atol=1e-4)


def test_recorded_queries_are_those_before_rotation(model):
    """Rotated here and multiplied with the cached keys, they give the model's own attention."""
    _, _, _, trace = reference.traced(model, PROMPT, LENGTH, lambda *_: None)
    at = len(trace.rows) - 2  # the last query has no key beside it in the trace
    for layer in range(4):
        query = trigonometry.turned(trace.queries[layer][at][None], [at], trace.frequencies)[0]
        plain = torch.cat([query.real, query.imag], dim=-1)
        for q in range(4):
            row = torch.softmax(trace.keys[layer][q // 2].double() @ plain[q] / 8, dim=0)
            assert torch.allclose(row, trace.rows[at][layer][q].double(), atol=1e-5)


POLICIES = {
    "h2o": lambda _: reference.h2o(40, 16),
    "rkv": lambda _: reference.rkv(40, 16),
    "expected_attention": lambda _: reference.expected_attention(60, 16),
    "elastic-none": lambda _: reference.elastic(0.5, 16, merge="none"),
    "prefixkv": lambda _: reference.prefixkv(40, 16),
    "prefixkv-fraction": lambda _: reference.prefixkv(0.4, 16),
    "triattention": lambda model: reference.triattention(
        40, 16, "per_layer_per_head", reference.query_statistics(model, PROMPT), protect_prompt=False
    ),
    "cold_compress": lambda _: reference.cold_compress(40, slack=16),
    "official": lambda _: reference.official(40, slack=16),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_only_drop(model, name):
    """Every run of a policy that does not merge is a run of the plain model with masks."""
    _, _, rounds, trace, _ = check(model, POLICIES[name](model))
    assert len(rounds) >= 2
    for layer, heads in enumerate(trace.positions):
        for held in heads:
            assert held == sorted(set(held)) and len(held) == trace.held(layer)


def test_elastic_merges_the_prompt(model):
    plain = reference.run(model, PROMPT, LENGTH, reference.elastic(30, 16, merge="none"))
    for merge in ("values", "kv"):
        found = reference.run(model, PROMPT, LENGTH, reference.elastic(30, 16, merge=merge))
        assert found[2][0] == plain[2][0]
        assert found[1] != plain[1]

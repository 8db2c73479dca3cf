"""Which tokens policies and presses keep of the very same tensors; imported where kvpress is installed."""

from typing import Any

import torch
from kvpress.utils import get_prerope_query_states
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from evals.beside.presses import press
from evals.beside.reading import Reading, ReadLayer, slots
from kvserve.policy import LayerView, Policy, QuerySums, Rope
from kvserve.policy.request import parse
from kvserve.policy.requirements import Asks
from kvserve.policy.softmax import Softmax

SINKS = 4  # whose queries kvserve's engine does not count for moments


def in_common(ours: dict[str, Any], theirs: dict[str, Any], keep: int, reading: Reading, model: PreTrainedModel) -> Any:
    """For each layer, how many tokens (all KV heads together) our policy keeps, their press keeps, and both keep."""
    policy, held = parse({**ours, "budget": keep}), reading.layers[0].keys.shape[2]
    pressed = reading.left(press(theirs, keep, held), model)
    counts = policy.shares(keep, len(reading.layers), held) or [keep] * len(reading.layers)
    found = []
    for index, (layer, (left, _)) in enumerate(zip(reading.layers, pressed, strict=True)):
        chosen = policy.select(_view(policy, layer, index, len(reading.layers)), counts[index])
        assert isinstance(chosen, Tensor)
        kept = slots(left, layer.keys)
        both = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(chosen, kept, strict=True))
        found.append((chosen.numel(), kept.numel(), both))
    return found


def _view(policy: Policy, layer: ReadLayer, index: int, layers: int) -> LayerView:
    """What kvserve's engine would show the policy of this layer at the end of the tokens read."""
    _, heads, held, _ = layer.keys.shape
    before = get_prerope_query_states(layer.module, layer.hidden_states)  # (1, Hq, n, D)
    after, _ = apply_rotary_pos_emb(before, before, *layer.kwargs["position_embeddings"])
    mass = None if layer.attentions is None else layer.attentions[0].sum(dim=1).unflatten(0, (heads, -1))
    window = Asks.of(policy).query_window
    return LayerView(
        layer=index,
        num_layers=layers,
        logical=held,
        since=0,
        positions=torch.arange(held).expand(heads, -1),
        load=lambda which: layer.keys[0] if which == "keys" else layer.values[0],
        softmax=Softmax(layer.module.scaling),
        queries=after[0].transpose(0, 1)[held - window :],
        query_positions=torch.arange(held - window, held),
        prompt=held,
        mass=None if mass is None else mass.transpose(1, 2),  # (H, n, G)
        moments=_moments(before[0, :, SINKS:]),
        rope=Rope(layer.module.rotary_emb.inv_freq.double()),
    )


def _moments(queries: Tensor) -> QuerySums:
    """(Hq, n, D) pre-RoPE queries -> their sums."""
    return QuerySums(queries.shape[1], queries.sum(dim=1), torch.einsum("hnd,hne->hde", queries, queries))

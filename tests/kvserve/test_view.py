"""The attention that a policy sees is the model's: with its scale, its soft cap and its learned sinks."""

import pytest
import torch

from kvserve.policy import Softmax
from kvserve.testing import layer_view

HEADS, GROUP, SLOTS, WIDTH, QUERIES = 2, 3, 20, 8, 5


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_per_head(cap, with_sinks):
    torch.manual_seed(0)
    keys = torch.randn(HEADS, SLOTS, WIDTH)
    queries = torch.randn(QUERIES, HEADS * GROUP, WIDTH)
    sinks = torch.randn(HEADS * GROUP) if with_sinks else None
    view = layer_view(keys, queries=queries, softmax=Softmax(0.5, cap, sinks))
    found = view.per_head(lambda probs, seen: probs)
    for head in range(HEADS):
        for member in range(GROUP):
            hq = head * GROUP + member
            for w in range(QUERIES):
                seen = SLOTS - QUERIES + w + 1
                logits = [0.5 * float(queries[w, hq] @ keys[head, i]) for i in range(seen)]
                if cap:
                    logits = [cap * float(torch.tensor(x / cap).tanh()) for x in logits]
                weights = torch.tensor([*logits, *([float(sinks[hq])] if with_sinks else [])]).exp()
                expected = (weights / weights.sum())[:seen]
                torch.testing.assert_close(found[head, member, w, :seen], expected, rtol=1e-5, atol=1e-6)
                assert not found[head, member, w, seen:].any()

"""What kvserve adds inside of attention may stand in a CUDA graph: no branch, no host sync, no new memory, one address.

Without a GPU that is shown on the traced code itself: a graph replays just the operations that tracing finds.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

from kvserve.runner import tap
from kvserve.runner.lengths import GroupLengths
from kvserve.runner.tap import LayerTap

TOKENS, HEADS, SIZE = 8, 4, 16
SYNCS = ("_local_scalar_dense", "item", "nonzero", "_to_copy")
ALLOCATES = ("empty", "zeros", "ones", "full", "clone", "cat", "index", "new_")


class Observers:
    """A compactor of which only the observers count."""

    def __init__(self, *active):
        self.active = active


class Note:
    def __init__(self):
        self.seen = []

    def before(self, layer, query):
        self.seen.append(query.clone())

    def after(self, layer, query, output):
        raise AssertionError("a replayed step shows nobody its layers")


@pytest.fixture
def capturing(monkeypatch):
    state = {"on": True}
    monkeypatch.setattr(tap, "capturing", lambda: state["on"])
    return state


def made(*active):
    return LayerTap(Observers(*active), "layer", torch.zeros(TOKENS, HEADS, SIZE))


def in_attention(layer_tap):
    def run(query, output):
        layer_tap.before(query)
        layer_tap.after(query, output)
        return output

    return run


def operations(layer_tap, count):
    query = torch.randn(count, HEADS, SIZE)
    traced = make_fx(in_attention(layer_tap))(query, query)
    return [node.target.name() for node in traced.graph.nodes if node.op == "call_function"], traced


@pytest.mark.parametrize("watchers", [0, 1, 2])
def test_the_same_operations_whoever_watches(capturing, watchers):
    found, _ = operations(made(*(Note() for _ in range(watchers))), 5)
    assert found == ["aten::slice.Tensor", "aten::copy_"] or found == ["aten::copy_"]
    assert not any(word in name for name in found for word in (*SYNCS, *ALLOCATES))


def test_a_replay_leaves_its_queries_where_the_first_one_did(capturing):
    note = Note()
    layer_tap = made(note)
    _, traced = operations(layer_tap, 5)
    address = layer_tap._staged.data_ptr()
    for seed in range(3):
        query = torch.randn(5, HEADS, SIZE, generator=torch.Generator().manual_seed(seed))
        traced(query, query)  # as a graph does: operations, no Python
        assert layer_tap._staged.data_ptr() == address
        layer_tap.catch_up()
        assert torch.equal(note.seen[-1][:5], query)
    assert len(note.seen) == 3


def test_compiled_whole_and_once(capturing):
    counter = CompileCounter()
    layer_tap = made(Note())
    compiled = torch.compile(in_attention(layer_tap), backend=counter, fullgraph=True)
    for seed in range(3):
        query = torch.full((5, HEADS, SIZE), float(seed))
        compiled(query, query)
        assert torch.equal(layer_tap._staged[:5], query)
    assert counter.frame_count == 1


def test_a_step_that_ran_in_python_is_not_shown_twice(capturing):
    note = Note()
    layer_tap = made(note)
    capturing["on"] = False
    layer_tap.before(torch.ones(3, HEADS, SIZE))
    layer_tap.catch_up()
    assert len(note.seen) == 1
    layer_tap.catch_up()  # the next step was replayed
    assert len(note.seen) == 2


def test_lengths_keep_their_address_with_and_without_compressed_requests():
    lengths = GroupLengths(4, torch.device("cpu"), always=True)
    seq_lens = torch.tensor([70, 80, 90, 0], dtype=torch.int32)
    seen = set()
    for offsets in ([0, 0, 0], [10, 0, 30], [0, 0, 0], [0, 5], []):
        lengths.begin_step(offsets)
        physical = lengths.physical(seq_lens)
        seen.add(physical.data_ptr())
        expected = seq_lens.clone()
        expected[: len(offsets)] -= torch.tensor(offsets, dtype=torch.int32)
        assert torch.equal(physical, expected)
    lengths.begin_step([7, 7, 7])
    lengths.end_step()
    assert torch.equal(lengths.physical(seq_lens), seq_lens)
    assert len(seen | {lengths.physical(seq_lens).data_ptr()}) == 1
    assert torch.equal(seq_lens, torch.tensor([70, 80, 90, 0], dtype=torch.int32))  # vLLM's own stay logical

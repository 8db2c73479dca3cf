"""Attention and block tables see physical lengths; without compacted requests they see vLLM's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kvserve.runner.attention import Alike, PhysicalLengths, QueryTap, _extended
from kvserve.runner.lengths import GroupLengths, shift_slots

CPU = torch.device("cpu")


class Metadata:
    def __init__(self, seq_lens):
        self.seq_lens = seq_lens


class StockBuilder:
    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        return common_attn_metadata.seq_lens


class StockImpl:
    def forward(self, layer, query, key):
        return query + key


class StockBackend:
    @staticmethod
    def get_impl_cls():
        return StockImpl

    @staticmethod
    def get_builder_cls():
        return StockBuilder


@pytest.fixture
def builder():
    return _extended(StockBackend).get_builder_cls()()


def test_lengths_are_replaced_in_a_copy(builder):
    lengths = GroupLengths(8, CPU)
    lengths.begin_step([0, 100, 3])
    shared = Metadata(torch.tensor([5, 300, 9, 0], dtype=torch.int32))  # a padding row
    builder.kv_lengths = lengths
    first = builder.build(0, shared)
    assert first.tolist() == [5, 200, 6, 0]
    assert shared.seq_lens.tolist() == [5, 300, 9, 0]
    assert builder.build(0, shared).data_ptr() == first.data_ptr(), "captured graphs need a buffer that stays"


def test_no_compacted_request_no_change(builder):
    lengths = GroupLengths(8, CPU)
    builder.kv_lengths = lengths
    seq_lens = torch.tensor([5, 300], dtype=torch.int32)
    lengths.begin_step([4, 4])
    for idle in (lambda: lengths.begin_step([0, 0]), lengths.end_step):
        idle()
        assert builder.build(0, Metadata(seq_lens)) is seq_lens


def test_fewer_requests_leave_no_stale_offsets():
    lengths = GroupLengths(8, CPU)
    lengths.begin_step([1, 2, 3, 4])
    lengths.begin_step([5])
    assert lengths.physical(torch.tensor([10, 10, 10], dtype=torch.int32)).tolist() == [5, 10, 10]


def test_groups_never_share_metadata(builder):
    assert builder.supports_update_block_table is False
    assert isinstance(builder, PhysicalLengths)


def test_queries_are_tapped_before_attention():
    impl, seen = _extended(StockBackend).get_impl_cls()(), []
    assert isinstance(impl, QueryTap)
    assert impl.forward(None, torch.ones(2), torch.ones(2)).tolist() == [2, 2]
    impl.kv_tap = SimpleNamespace(
        before=lambda q: seen.append("before"), after=lambda q, out: seen.append(out.tolist())
    )
    assert impl.forward(None, torch.ones(2), torch.ones(2)).tolist() == [2, 2]
    assert seen == ["before", [2, 2]]


class Table:
    """A block table that records what it was asked for."""

    def compute_slot_mapping(self, num_reqs, query_start_loc, positions):
        self.asked = positions


def test_slots_follow_physical_positions():
    table, lengths = Table(), GroupLengths(4, CPU)
    request_of_token = torch.from_numpy(np.array([0, 0, 1, 2, 2], dtype=np.int64))
    shift_slots(table, lengths, lambda n: request_of_token[:n])
    positions = torch.tensor([7, 8, 50, 90, 91])
    table.compute_slot_mapping(3, None, positions)
    assert table.asked is positions
    lengths.begin_step([0, 20, 64])
    table.compute_slot_mapping(3, None, positions)
    assert table.asked.tolist() == [7, 8, 30, 26, 27]


def test_on_cpu_slots_are_those_of_vllm():
    from vllm.platforms import current_platform
    from vllm.utils.cpu_triton_utils import _compute_slot_mapping_kernel_impl as stock
    from vllm.v1.worker.block_table import BlockTable

    current_platform.import_kernels()
    table = BlockTable(32, 4, 16, 64, False, CPU, 1)
    for row in range(3):
        table.add_row([3 + row, 9 + row, 1 + row], row)
    table.commit_block_table(3)
    starts, positions = torch.tensor([0, 2, 3, 6], dtype=torch.int32), torch.tensor([0, 95, 40, 30, 31, 64])
    slots = table.slot_mapping.gpu
    stock(6, 64, starts, positions, table.block_table.gpu, 16, slots, 32)
    expected = slots[:6].tolist()
    slots.zero_()
    shift_slots(table, GroupLengths(4, CPU), lambda n: torch.arange(n))
    table.compute_slot_mapping(3, starts, positions)
    assert slots[:6].tolist() == expected == [96, 63, 328, 190, 191, 96]


def test_groups_that_differ_in_their_blocks_only_share_the_rest():
    made = []

    def build():
        made.append(SimpleNamespace(seq_lens="lengths", block_table="first", slot_mapping="first"))
        return made[-1]

    def asked(step, blocks):
        return SimpleNamespace(positions=step, block_table_tensor=blocks, slot_mapping=blocks)

    alike = Alike()
    for count in (1, 2):
        step = torch.arange(3)
        first = alike.of(asked(step, "first"), build)
        second = alike.of(asked(step, "second"), build)
        assert (len(made), first.block_table) == (count, "first")
        assert (second.seq_lens, second.block_table, second.slot_mapping) == ("lengths", "second", "second")


def test_a_group_with_compacted_requests_shares_nothing(builder):
    builder.kv_lengths, builder.kv_alike = GroupLengths(8, CPU), Alike()
    builder.kv_lengths.begin_step([0, 100])
    metadata = Metadata(torch.tensor([5, 300], dtype=torch.int32))
    assert builder.build(0, metadata).tolist() == [5, 200]  # and no positions are asked for

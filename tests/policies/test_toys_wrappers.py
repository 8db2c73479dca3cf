"""ChunkKV, CriticalKV, LagKV and KVzip on examples small enough to check by hand."""

import pytest
import torch

from kvserve.policy import LayerView, request
from tests.policies.test_toys import rows_as_keys


def view(keys, values=None, queries=None, positions=None, **more):
    """A layer view of plain lists: keys and values (H, n, D), the last query at the last position."""
    keys = torch.tensor(keys, dtype=torch.float32)
    values = keys if values is None else torch.tensor(values, dtype=torch.float32)
    positions = torch.arange(keys.shape[1]).expand(len(keys), -1) if positions is None else torch.tensor(positions)
    if queries is not None:
        more |= {"queries": torch.tensor(queries), "query_positions": positions[0, -1:]}
    now = int(positions.max()) + 1
    return LayerView(0, 4, now, 0, positions, lambda which: keys if which == "keys" else values, **more)


class TestChunkKV:
    ROW = [0.05, 0.25, 0.20, 0.20, 0.02, 0.18, 0.10]  # means of pairs: 0.15, 0.20, 0.10; the newest is protected

    def kept(self, keep, positions=None, **fields):
        keys, queries = rows_as_keys([self.ROW])
        policy = request.parse({"name": "chunkkv", "of": "tova", "chunk": 2, **fields})
        return policy.select(view(keys, queries=queries, positions=positions), keep).tolist()

    def test_whole_chunks(self):
        assert self.kept(3) == [[2, 3, 6]]
        assert self.kept(5) == [[0, 1, 2, 3, 6]]

    def test_of_the_last_chunk_the_newest_tokens(self):
        assert self.kept(4) == [[1, 2, 3, 6]]

    def test_chunks_are_those_of_the_text_also_where_tokens_are_gone(self):
        """Pairs of positions: 1 | 2, 3 | 4, 5 | 8 | 9, of which the last is protected."""
        assert self.kept(3, [[1, 2, 3, 4, 5, 8, 9]]) == [[1, 2, 6]]  # means .05, .225, .11, .18
        assert self.kept(4, [[1, 2, 3, 4, 5, 8, 9]]) == [[1, 2, 5, 6]]

    def test_protected_tokens_do_not_count(self):
        """The newest token has infinite rank; its neighbour in the chunk stands for itself."""
        assert self.kept(3, [[0, 1, 2, 3, 4, 6, 7]]) == [[2, 3, 6]]  # means .15, .2, .02, .18
        assert self.kept(4, [[0, 1, 2, 3, 4, 6, 7]]) == [[2, 3, 5, 6]]

    def test_heads_may_choose_together(self):
        rows = [[0.4, 0.4, 0.05, 0.05, 0.1], [0.1, 0.1, 0.35, 0.35, 0.1]]
        keys = torch.cat([torch.tensor(rows_as_keys([row])[0]) for row in rows]).tolist()
        repeated = torch.tensor(rows)
        for heads, kept in ((True, [[0, 1, 4], [2, 3, 4]]), (False, [[0, 1, 4]] * 2)):
            policy = request.parse({"name": "chunkkv", "of": {"name": "kvzip", "sinks": 0}, "chunk": 2, "heads": heads})
            assert policy.select(view(keys, repeated=repeated), 3).tolist() == kept

    def test_the_default_is_the_papers(self):
        policy = request.parse("chunkkv")
        assert (policy.chunk, policy.of.name, policy.of.kernel, policy.decode) == (10, "snapkv", 1, False)


class TestCriticalKV:
    ROW = [0.30, 0.25, 0.20, 0.15, 0.10]
    VALUES = [[[0, 0], [0.5, 0], [0, 1], [0, -3], [0, 0]]]
    WEIGHT = [[[[1, 0, -1], [0, 1, 0]]]]  # (x, y) adds (x, y, -x): L1 norms 0, 1, 1, 3, 0

    def kept(self, keep, weight=None, queries=None, **fields):
        keys, own = rows_as_keys([self.ROW])
        made = torch.tensor(weight or self.WEIGHT, dtype=torch.float32)
        policy = request.parse({"name": "criticalkv", "of": "tova", **fields})
        return policy.select(view(keys, self.VALUES, queries or own, output_weight=lambda: made), keep).tolist()

    def test_half_by_attention_half_by_what_it_adds(self):
        """The newest token is beside both: of two more, one by attention, one by .25, .2 and .45."""
        assert self.kept(3) == [[0, 3, 4]]

    def test_one_stage_alone(self):
        assert self.kept(3, first=1.0) == [[0, 1, 4]]
        assert self.kept(3, first=0.0) == [[1, 3, 4]]

    def test_the_first_share_rounds_down(self):
        assert self.kept(2) == [[3, 4]]
        assert self.kept(4) == [[0, 1, 3, 4]]

    def test_epsilon_lets_large_values_count_without_attention(self):
        assert self.kept(2, first=0.0, epsilon=0.0) == [[3, 4]]
        assert self.kept(2, first=0.0, weight=[[[[100, 0, 0], [0, 1, 0]]]]) == [[1, 4]]

    def test_norms_are_means_over_the_query_heads(self):
        """Norms by head: 0, .5, 0, 0 and 0, 0, 1, 3: means 0, .25, .5, 1.5, times attention .06, .1 and .23."""
        pair = [[[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]]]
        queries = [[rows_as_keys([self.ROW])[1][0][0]] * 2]
        assert self.kept(2, first=0.0, weight=pair, queries=queries) == [[3, 4]]
        assert self.kept(3, first=0.0, weight=pair, queries=queries) == [[2, 3, 4]]


class TestLagKV:
    """One sink, partitions of two, and one token behind them: 0 | 1 2 | 3 4 | 5."""

    KEYS = [[[9, 9], [1, 0], [0.5, 1], [0, 0], [1, 2], [5, 5]]]  # by the next pair: (1, 0) and (0.5, 0.5)

    def kept(self, keep, values=None, **fields):
        policy = request.parse({"name": "lagkv", "sinks": 1, "recent": 1, "lag": 2, **fields})
        return policy.select(view(self.KEYS, values or [[[0, 0]] * 6]), keep).tolist()

    def test_what_stands_out_stays(self):
        assert self.kept(5) == [[0, 1, 3, 4, 5]]

    def test_values_count_as_much_as_keys(self):
        """Keys: softmax of .71 and 0, .67 : .33; values: of 0 and 2.1, .11 : .89."""
        assert self.kept(5, [[[0, 0], [0, 0], [3, 0], [0, 0], [1, 1], [0, 0]]]) == [[0, 2, 3, 4, 5]]

    def test_what_has_no_next_partition_stays_before_others_the_newest_first(self):
        assert self.kept(4) == [[0, 3, 4, 5]]
        assert self.kept(3) == [[0, 4, 5]]

    def test_too_short_for_two_partitions(self):
        assert self.kept(4, lag=3) == [[0, 3, 4, 5]]

    def test_each_partition_gives_the_same_share(self):
        g = torch.Generator().manual_seed(0)
        keys, values = torch.randn(2, 3, 4 + 8 * 16 + 5, 8, generator=g).tolist()
        policy = request.parse({"name": "lagkv", "sinks": 4, "recent": 1, "lag": 16})
        kept = policy.select(view(keys, values), 4 + 7 * 4 + 21)
        for row in kept:
            assert torch.histc((row[4:-21] - 4).float(), 7, 0, 7 * 16).tolist() == [4] * 7

    def test_channels_that_do_not_change_say_nothing(self):
        assert self.kept(5, [[[1, 1]] * 6]) == [[0, 1, 3, 4, 5]]


class TestKVzip:
    def test_the_highest_attention(self):
        seen = view([[[0.0]] * 6], repeated=torch.tensor([[0.0, 0.3, 0.1, 0.9, 0.2, 0.0]]))
        policy = request.parse({"name": "kvzip", "sinks": 1})
        assert policy.select(seen, 4).tolist() == [[0, 1, 3, 5]]

    def test_it_must_have_been_repeated(self):
        with pytest.raises(RuntimeError, match="does not declare SidePass"):
            request.parse("kvzip").select(view([[[0.0]] * 6]), 3)

"""The papers' algorithms on examples small enough to check by hand."""

import pytest
import torch

from kvserve.policy import Facts, Moment, PolicyError, Softmax, request, top_slots
from kvserve.testing import layer_view


def view(positions, *, keys=None, queries=None, at=None, since=0, state=None, layer=0):
    """A layer view of plain lists; keys (H, n, D), zeros if there are none. Products are logits as they are."""
    content = keys if keys is not None else torch.zeros(len(positions), len(positions[0]), 2)
    given = {} if queries is None else {"queries": queries, "query_positions": at}
    return layer_view(
        content, content, positions=torch.tensor(positions), layer=layer, num_layers=4, since=since, state=state or {},
        softmax=Softmax(), prompt=0, **given,
    )  # fmt: skip


def rows_as_keys(rows):
    """Keys and queries whose softmax attention is exactly the given rows: q_w = e_w, k_i[w] = log row_w[i]."""
    probs = torch.tensor(rows)
    return probs.log().T[None].tolist(), torch.eye(len(rows))[:, None].tolist()


class TestStreaming:
    def test_paper_example(self):
        """n = 10, budget 6, 4 sinks -> {0, 1, 2, 3, 8, 9}."""
        policy = request.parse("streaming:6")
        assert policy.select(view([list(range(10))] * 2), 6).tolist() == [[0, 1, 2, 3, 8, 9]] * 2


class TestScissorhands:
    ROWS = [
        [0.40, 0.05, 0.10, 0.20, 0.05, 0.20],
        [0.45, 0.05, 0.05, 0.05, 0.20, 0.20],
        [0.30, 0.05, 0.25, 0.05, 0.05, 0.30],
    ]

    def test_votes_and_drop(self):
        """Low votes [0 3 2 2 2 0]; with r = 1 and m = 2 the older of the equals goes too: keep {0, 3, 4, 5}."""
        keys, queries = rows_as_keys(self.ROWS)
        policy = request.parse({"name": "scissorhands", "budget": 5, "recent": 1, "history": 3})
        seen = view([list(range(6))], keys=keys, queries=queries, at=[6, 6, 6])
        assert policy.select(seen, 4).tolist() == [[0, 3, 4, 5]]
        assert seen.state["low"].sum(-1).tolist() == [[0, 3, 2, 2, 2, 0]]

    def test_uniform_attention_drops_the_oldest_outside_recent(self):
        policy = request.parse({"name": "scissorhands", "budget": 7, "recent": 2, "history": 9})
        seen = view([list(range(7))], keys=[[[1.0, 2.0]] * 7], queries=[[[0.3, -0.2]]] * 9, at=[7] * 9)
        assert policy.select(seen, 4).tolist() == [[3, 4, 5, 6]]
        assert not seen.state["low"].any()

    def test_always_low_goes_first(self):
        keys, queries = rows_as_keys([[0.5, 0.02, 0.16, 0.16, 0.16], [0.1, 0.02, 0.3, 0.28, 0.3]])
        policy = request.parse({"name": "scissorhands", "budget": 4, "recent": 1, "history": 2})
        seen = view([list(range(5))], keys=keys, queries=queries, at=[5, 5])
        assert policy.select(seen, 4).tolist() == [[0, 2, 3, 4]]

    def test_history_slides_over_rounds(self):
        """Votes carried from earlier rounds count until `history` newer queries have voted."""
        keys, queries = rows_as_keys([[0.7, 0.1, 0.1, 0.1]])
        policy = request.parse({"name": "scissorhands", "budget": 3, "recent": 1, "history": 3})
        old = torch.tensor([[[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]], dtype=torch.uint8)
        seen = view([[0, 1, 2, 3]], keys=keys, queries=queries, at=[4], since=4, state={"low": old})
        policy.select(seen, 3)
        assert seen.state["low"].tolist() == [[[1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]]

    def test_young_slots_have_fewer_votes(self):
        """A query does not vote on tokens younger than itself."""
        policy = request.parse({"name": "scissorhands", "budget": 3, "recent": 1, "history": 2})
        seen = view([[0, 1, 2, 3]], keys=[[[0.0, 0.0]] * 3 + [[9.0, 0.0]]], queries=[[[1.0, 0.0]]] * 2, at=[2, 3])
        policy.select(seen, 3)
        assert seen.state["low"].tolist() == [[[0, 1], [0, 1], [0, 1], [0, 0]]]

    def test_round_size(self):
        """Acts as soon as n > B and leaves B + 1 - m; the prompt's excess goes at once, not by m."""
        policy = request.parse({"name": "scissorhands", "budget": 100})
        assert policy.due(Moment(500, 100, "decode")) is None
        assert policy.due(Moment(501, 101, "decode")) == 51
        assert policy.due(Moment(700, 700, "prefilled")) == 100
        tight = request.parse({"name": "scissorhands", "budget": 20, "drop": 1.0})
        assert tight.due(Moment(501, 21, "decode")) == 11  # the recent ten and one more stay

    def test_slope_moves_budget_to_late_layers_and_keeps_the_sum(self):
        policy = request.parse({"name": "scissorhands", "budget": 101, "slope": 0.5})
        shares = policy.shares(101, 4, 500)
        assert shares == sorted(shares)
        assert sum(shares) == 4 * 101
        assert shares[0] < 60 < 140 < shares[-1]


class TestSnapKV:
    def test_window_and_pooling(self):
        """The neighbours of an attended token are kept with it; the window always stays."""
        row = [0.01] * 12
        row[3] = 0.5
        keys, queries = rows_as_keys([row, row])
        policy = request.parse({"name": "snapkv", "budget": 5, "window": 2, "kernel": 3})
        seen = view([list(range(12))], keys=keys, queries=queries, at=[12, 12])
        assert policy.select(seen, 5).tolist() == [[2, 3, 4, 10, 11]]

    def test_only_the_last_window_votes(self):
        first, last = [0.01] * 8, [0.01] * 8
        first[1], last[4] = 0.9, 0.9
        keys, queries = rows_as_keys([first, last])
        policy = request.parse({"name": "snapkv", "budget": 2, "window": 1, "kernel": 1})
        assert policy.select(view([list(range(8))], keys=keys, queries=queries, at=[8, 8]), 2).tolist() == [[4, 7]]

    def test_prompt_only_unless_asked(self):
        at = Moment(1280, 900, "decode")
        assert request.parse("snapkv:512").due(at) is None
        assert request.parse({"name": "snapkv", "budget": 512, "decode": True}).due(at) == 512


class TestKNorm:
    def test_small_keys_stay(self):
        keys = [[[9.0, 0], [1, 0], [5, 0], [2, 0], [7, 0]]]
        policy = request.parse({"name": "knorm", "budget": 3, "sinks": 0, "recent": 1})
        assert policy.select(view([list(range(5))], keys=keys), 3).tolist() == [[1, 3, 4]]


class TestKeyDiff:
    def test_the_odd_one_stays(self):
        keys = [[[1.0, 0.1], [2, 0.1], [0.1, 3], [4, 0.2], [1, 0]]]
        policy = request.parse({"name": "keydiff", "budget": 2, "sinks": 0, "recent": 1})
        assert policy.select(view([list(range(5))], keys=keys), 2).tolist() == [[2, 4]]


class TestTOVA:
    def test_one_set_for_all_heads(self):
        """Each head alone would keep another token; the mean decides, and the last token stays."""
        keys, queries = rows_as_keys([[0.5, 0.1, 0.2, 0.1, 0.1]])
        other, _ = rows_as_keys([[0.1, 0.1, 0.6, 0.1, 0.1]])
        policy = request.parse({"name": "tova", "budget": 2})
        both = [queries[0] * 2]
        seen = view([list(range(5))] * 2, keys=keys + other, queries=both, at=[5])
        assert policy.select(seen, 2).tolist() == [[2, 4], [2, 4]]

    def test_the_mean_is_that_of_all_workers(self):
        """This worker's heads favour token 0, with those of another one token 2 wins."""
        keys, queries = rows_as_keys([[0.5, 0.1, 0.2, 0.1, 0.1]])
        seen = view([list(range(5))], keys=keys, queries=queries, at=[5])
        seen.mean_over_workers = lambda mean: (mean + torch.tensor([0.1, 0.1, 0.6, 0.1, 0.1])) / 2
        policy = request.parse("tova:2")
        policy.check(Facts(4, 1, 32, 1000, 4096, 512, tensor_parallel=2))
        assert policy.select(seen, 2).tolist() == [[2, 4]]


class TestPyramidKV:
    def test_budgets_shrink_with_depth_and_keep_their_mean(self):
        policy = request.parse({"name": "pyramidkv", "budget": 132, "window": 32})
        assert policy.shares(132, 4, 5000) == [227, 164, 100, 37]  # 32 + 195, 132, 68, 5

    def test_no_layer_gets_more_than_there_is(self):
        policy = request.parse({"name": "pyramidkv", "budget": 132, "window": 32})
        assert policy.shares(132, 3, 182) == [182, 132, 82]

    def test_a_budget_for_each_layer_is_refused_where_there_is_one_group(self):
        with pytest.raises(PolicyError, match="--kv-groups"):
            request.parse({"name": "pyramidkv", "granularity": "layer"}).check(Facts(4, 1, 32, 1000, 4096, 512))

    def test_left_to_the_server_it_takes_what_there_is(self):
        policy = request.parse("pyramidkv")
        for groups, bundled in [(1, True), (2, True), (4, False)]:
            facts = Facts(4, groups, 32, 1000, 4096, 512)
            policy.check(facts)
            assert policy.bundled(facts) is bundled
        even = request.parse("scissorhands")  # without a slope all layers get the same
        assert not even.bundled(Facts(4, 1, 32, 1000, 4096, 512))


class TestRandom:
    def test_a_draw_belongs_to_the_token(self):
        """The same tokens survive whichever slots they lie in, and other heads, layers, seeds draw others."""
        policy = request.parse({"name": "random", "budget": 40, "sinks": 4, "recent": 8})
        whole = list(range(200))
        first = policy.select(view([whole] * 2), 60)
        held = [[whole[i] for i in row] for row in first.tolist()]
        again = policy.select(view(held), 40)
        direct = policy.select(view([whole] * 2), 40)
        assert [[h[i] for i in r] for h, r in zip(held, again.tolist(), strict=True)] == direct.tolist()
        assert direct[0].tolist() != direct[1].tolist()
        assert policy.select(view([whole] * 2, layer=1), 40).tolist() != direct.tolist()
        other = request.parse({"name": "random", "budget": 40, "sinks": 4, "recent": 8, "seed": 1})
        assert other.select(view([whole] * 2), 40).tolist() != direct.tolist()

    def test_it_is_a_fair_sample(self):
        policy = request.parse({"name": "random", "budget": 500, "sinks": 0, "recent": 1})
        kept = policy.select(view([list(range(2000))] * 8), 500)
        halves = (kept < 1000).float().mean(dim=1)
        assert ((halves - 0.5).abs() < 0.08).all()

    def test_tensor_parallel_ranks_draw_what_one_worker_draws(self):
        policy = request.parse("random:50")
        whole = view([list(range(300))] * 4)
        second = view([list(range(300))] * 2)
        second.head_offset = 2
        assert policy.select(whole, 50)[2:].tolist() == policy.select(second, 50).tolist()


@pytest.mark.parametrize("flip", [False, True])
def test_ties_keep_the_newer_token(flip):
    scores = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    scores = -scores if flip else scores
    assert top_slots(scores, 3).tolist() == ([[0, 2, 4]] if flip else [[1, 3, 4]])
    assert top_slots(torch.zeros(1, 6), 2).tolist() == [[4, 5]]

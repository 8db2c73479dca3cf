"""Policies that weigh attention, on examples small enough to check by hand."""

import math

import pytest
import torch

from kvserve.policy import Facts, Mass, Moment, PolicyError, Queries, QuerySums, Rope, Softmax, request
from kvserve.policy.evidence import find
from policies import rkv
from tests.policies.test_toys import rows_as_keys, view


class TestH2O:
    def seen(self, mass):
        """One KV head; mass (n, G)."""
        made = view([list(range(len(mass)))])
        made.mass = torch.tensor([mass])
        return made

    def test_one_query(self):
        """Row [.5, .1, .1, .3], budget 2 with 1 recent -> {0, 3}."""
        policy = request.parse("h2o:2")
        assert policy.select(self.seen([[0.5], [0.1], [0.1], [0.3]]), 2).tolist() == [[0, 3]]

    def test_half_heavy_hitters_half_recent(self):
        mass = [[m] for m in (0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.0, 0.0)]
        policy = request.parse("h2o:4")
        assert policy.select(self.seen(mass), 4).tolist() == [[1, 3, 6, 7]]
        assert policy.select(self.seen(mass), 5).tolist() == [[1, 3, 5, 6, 7]]  # the odd one is a heavy hitter
        tenth = request.parse({"name": "h2o", "budget": 4, "recent_share": 0.1})
        assert tenth.select(self.seen(mass), 4).tolist() == [[1, 3, 5, 7]]
        window = request.parse({"name": "h2o", "budget": 4, "recent_share": 1.0})
        assert window.select(self.seen(mass), 4).tolist() == [[4, 5, 6, 7]]

    def test_query_heads_of_a_group_are_averaged(self):
        mass = [[0.9, 0.0], [0.5, 0.5], [0.0, 0.6], [0.0, 0.0]]
        assert request.parse("h2o:2").select(self.seen(mass), 2).tolist() == [[1, 3]]

    def test_a_round_needs_the_sums_of_all_queries(self):
        policy = request.parse("h2o:100")
        assert (policy.evidence, policy.protected) == ((Mass(observes="all"),), 1)
        assert policy.due(Moment(256, 228, "decode")) == 100


class TestScissorhandsVariants:
    ROWS = [
        [0.36, 0.05, 0.10, 0.24, 0.05, 0.20],
        [0.45, 0.05, 0.05, 0.05, 0.20, 0.20],
        [0.30, 0.05, 0.25, 0.05, 0.05, 0.30],
    ]

    def policy(self, variant, **fields):
        fields = {"recent": 1, "sinks": 0, "history": 3, "budget": 5} | fields
        return request.parse({"name": "scissorhands", "variant": variant, **fields})

    def seen(self, rows=ROWS, at=(5, 6, 7), **fields):
        keys, queries = rows_as_keys(rows)
        made = view([list(range(len(rows[0])))], keys=keys, queries=queries, at=list(at), **fields)
        made.logical = at[-1] + 1
        return made

    def test_mean_attention(self):
        """Sums [1.11 .15 .40 .34 .30 .70] over 3 queries."""
        policy, seen = self.policy("cold-compress"), self.seen()
        means = [x / 3 for x in (1.11, 0.15, 0.40, 0.34, 0.30, 0.70)]
        assert policy.scores(seen)[0].tolist() == pytest.approx(means, abs=1e-3)
        assert policy.select(seen, 4).tolist() == [[0, 2, 3, 5]]

    def test_share_of_high_votes(self):
        policy, seen = self.policy("cold-compress", measure="bit"), self.seen()
        assert policy.scores(seen)[0].tolist() == pytest.approx([1, 0, 1 / 3, 1 / 3, 1 / 3, 1])
        assert policy.select(seen, 4).tolist() == [[0, 3, 4, 5]]

    def test_only_queries_that_saw_a_token_count(self):
        """Uniform attention of the queries at 2 and 3: slots 0 to 2 got 1/3 and 1/4, slot 3 got 1/4 of the one."""
        seen = view([list(range(4))], keys=[[[1.0, 2.0]] * 4], queries=[[[0.3, -0.2]]] * 2, at=[2, 3])
        scores = self.policy("cold-compress").scores(seen)[0].tolist()
        assert scores == pytest.approx([7 / 24] * 3 + [1 / 4], abs=1e-3)

    def test_uniform_attention_is_high(self):
        policy = self.policy("cold-compress", measure="bit")
        seen = view([list(range(7))], keys=[[[1.0, 2.0]] * 7], queries=[[[0.3, -0.2]]] * 3, at=[4, 5, 6])
        assert policy.scores(seen).tolist() == [[1.0] * 7]

    def test_history_slides_over_rounds(self):
        policy = self.policy("cold-compress", history=2)
        old = torch.tensor([[[0.5, 0.25], [0.5, 0.75], [0.0, 0.0]]], dtype=torch.float16)
        seen = self.seen([[0.5, 0.25, 0.25]], at=[2], since=2, state={"probability": old})
        assert policy.scores(seen)[0].tolist() == pytest.approx([0.375, 0.5, 0.25], abs=1e-3)
        assert seen.state["probability"].shape == (1, 3, 2)

    def test_last_use(self):
        """Above the median: slots 1 and 3 for the query at 4, slot 2 for the one at 5."""
        rows = [[0.05, 0.40, 0.05, 0.40, 0.05, 0.05], [0.05, 0.05, 0.60, 0.10, 0.10, 0.10]]
        policy = self.policy("official", percentile=0.5)
        seen = self.seen(rows, at=[4, 5])
        assert policy.scores(seen).tolist() == [[0, 5, 6, 5, 0, 0]]
        assert policy.select(seen, 4).tolist() == [[1, 2, 3, 5]]
        assert policy.select(seen, 3).tolist() == [[2, 3, 5]]
        short = self.policy("official", percentile=0.5, history=1)
        assert short.select(self.seen(rows, at=[4, 5]), 3).tolist() == [[2, 4, 5]]

    def test_last_use_is_carried_and_expires(self):
        row = [[0.05, 0.05, 0.60, 0.10, 0.10, 0.10]]
        state = {"used": torch.tensor([[4, 3, 0, 0, 0, 0]])}
        seen = self.seen(row, at=[5], since=5, state=state)
        assert self.policy("official", percentile=0.5).scores(seen).tolist() == [[4, 0, 6, 0, 0, 0]]
        assert seen.state["used"].tolist() == [[4, 3, 6, 0, 0, 0]]

    def test_what_a_query_could_not_see_counts_in_its_percentile(self):
        policy = self.policy("official")
        seen = view([list(range(20))], keys=[[[1.0, 2.0]] * 20], queries=[[[0.3, -0.2]]] * 2, at=[1, 19], since=0)
        seen.prompt = 20
        assert policy.scores(seen).tolist() == [[0] * 20]  # the query at 1 is out of the history of 3
        long = self.policy("official", history=100)
        assert long.scores(seen).tolist() == [[2, 2] + [0] * 18]  # uniform attention exceeds zeros, not itself
        seen.prompt, seen.state = 0, {}
        assert long.scores(seen).tolist() == [[0] * 20]  # a generated token's row is what it saw

    @pytest.mark.parametrize("percentile", [0.0, 0.5, 0.9, 0.99])
    @pytest.mark.parametrize("slots", [5, 11, 64])
    def test_above_the_percentile_as_torch_defines_it(self, slots, percentile):
        rows = torch.rand(1, slots, generator=torch.Generator().manual_seed(slots)).softmax(-1)
        seen = self.seen(rows.tolist(), at=[slots])
        above = rows[0] > rows[0].quantile(percentile)
        policy = self.policy("official", percentile=percentile)
        assert (policy.scores(seen)[0] > 0).tolist() == above.tolist()

    def test_defaults_of_a_variant(self):
        def values(**fields):
            policy = request.parse({"name": "scissorhands", "budget": 200, **fields})
            assert request.parse(request.dump(policy)) == policy
            return policy.sinks, policy.recent, find(Queries, policy.evidence).last

        assert values() == (0, 10, 400)
        assert values(variant="cold-compress") == (4, 10, 400)
        assert values(variant="official") == (0, 10, 100)
        assert values(variant="cold-compress", sinks=1) == (1, 10, 400)

    @pytest.mark.parametrize("variant", ["cold-compress", "official"])
    def test_rounds_are_those_of_slack(self, variant):
        policy = request.parse({"name": "scissorhands", "variant": variant, "budget": 100})
        assert policy.due(Moment(501, 101, "decode")) is None
        assert policy.due(Moment(512, 112, "decode")) == 100
        assert policy.overshoot() == policy.slack


class TestRKV:
    DUPLICATES = [[[1.0, 0, 0], [0, 1, 0], [2, 0, 0], [1, 0, 0], [0, 0, 1]]]

    def test_the_newest_duplicate_is_not_penalised(self):
        """Keys 0, 2, 3 are alike. 0 and 2 overlook 3, 3 overlooks 2: column means [2 0 1 0 0] / 5."""
        policy = request.parse({"name": "rkv", "budget": 3, "window": 1, "mix": 0.0, "kernel": 1})
        seen = view([list(range(5))], keys=self.DUPLICATES, queries=[[[0.0, 0, 0]]], at=[4])
        expected = -torch.softmax(torch.tensor([0.4, 0, 0.2, 0, 0]), dim=0)
        torch.testing.assert_close(policy.scores(seen)[0, :4], expected[:4])
        assert policy.select(seen, 4).tolist() == [[1, 2, 3, 4]]
        assert policy.select(seen, 3).tolist() == [[1, 3, 4]]

    def test_attention_and_redundancy_are_mixed(self):
        """Two query heads: the higher raw logit counts, then softmax over what is before the window."""
        policy = request.parse({"name": "rkv", "budget": 3, "window": 1, "mix": 0.25, "kernel": 1})
        seen = view([list(range(5))], keys=self.DUPLICATES, queries=[[[1.0, -2, 0], [-1, 3, 7]]], at=[4])
        attention = torch.softmax(torch.tensor([1.0, 3, 2, 1]), dim=0)
        redundancy = torch.softmax(torch.tensor([0.4, 0, 0.2, 0, 0]), dim=0)[:4]
        torch.testing.assert_close(policy.scores(seen)[0, :4], 0.25 * attention - 0.75 * redundancy)
        assert policy.scores(seen)[0, 4] == math.inf

    def test_attention_is_pooled_over_neighbours(self):
        policy = request.parse({"name": "rkv", "budget": 4, "window": 1, "mix": 1.0, "kernel": 3})
        row = [0.1, 0.1, 0.4, 0.1, 0.1, 0.1, 0.1]
        keys, queries = rows_as_keys([row])
        assert policy.select(view([list(range(7))], keys=keys, queries=queries, at=[7]), 4).tolist() == [[1, 2, 3, 6]]

    def test_tiles_give_what_the_whole_matrix_gives(self, monkeypatch):
        keys = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
        direction = keys / keys.norm(dim=1, keepdim=True)
        cosine = direction @ direction.T
        cosine.fill_diagonal_(0)
        for row in cosine:
            alike = (row > 0.5).nonzero()
            if len(alike):
                row[alike[-1]] = 0
        expected = torch.softmax(cosine.mean(dim=0), dim=0)
        for tile in (1, 7 * 90, 1 << 22):
            monkeypatch.setattr(rkv, "_TILE", tile)
            torch.testing.assert_close(rkv._redundancy(keys, 0.5), expected)

    def test_it_acts_while_generating(self):
        policy = request.parse("rkv:512")
        assert policy.due(Moment(1280, 640, "decode")) == 512
        assert (policy.window, policy.kernel, policy.mix, find(Queries, policy.evidence).last) == (8, 7, 0.1, 8)


def turned(x, position, rope, width):
    """x (..., D) rotated to a position, channel pair by channel pair, in float64."""
    out = x.clone()
    bands = len(rope.inv_freq)
    for band, speed in enumerate(rope.inv_freq.tolist()):
        a, b = (band, band + bands) if rope.neox else (2 * band, 2 * band + 1)
        cos, sin = math.cos(position * speed) * rope.factor, math.sin(position * speed) * rope.factor
        out[..., a] = x[..., a] * cos - x[..., b] * sin
        out[..., b] = x[..., b] * cos + x[..., a] * sin
    assert out.shape[-1] == width
    return out


class TestExpectedAttention:
    D = 6
    ROPES = [
        pytest.param(Rope(torch.tensor([0.7, 0.05, 0.01]).double()), id="neox"),
        pytest.param(Rope(torch.tensor([0.7, 0.05, 0.01]).double(), factor=1.2, neox=False), id="gptj"),
        pytest.param(Rope(torch.tensor([0.3, 0.02]).double(), factor=0.9), id="partial"),
        pytest.param(Rope(torch.tensor([0.3, 0.02]).double(), neox=False), id="partial-gptj"),
    ]

    def seen(self, rope, slots=9, heads=2, group=2, seed=0):
        g = torch.Generator().manual_seed(seed)
        keys, values = (torch.randn(heads, slots, self.D, generator=g) for _ in range(2))
        queries = torch.randn(400, heads * group, self.D, generator=g) * 0.8 + torch.randn(self.D, generator=g)
        made = view([list(range(slots))] * heads, keys=keys.tolist())
        made.load = lambda which: keys if which == "keys" else values
        made.moments = QuerySums(400, queries.sum(0), torch.einsum("whd,whe->hde", queries, queries))
        made.rope, made.softmax = rope, Softmax(0.4)
        return made, queries.double()

    def policy(self, **fields):
        return request.parse({"name": "expected-attention", "budget": 8, "recent": 1, "sinks": 2, **fields})

    @pytest.mark.parametrize("rope", ROPES)
    def test_closed_form(self, rope):
        """Rotation averaged by applying it to all queries at every position; then the formula, slot by slot."""
        seen, queries = self.seen(rope)
        horizon, group = 5, 2
        ahead = sum(turned(queries, seen.logical + i, rope, self.D) for i in range(horizon)) / horizon
        expected = torch.zeros(2, 9).double()
        for head in range(2 * group):
            mean, cov = ahead[:, head].mean(0), ahead[:, head].T.cov(correction=0)
            logits = [
                0.4 * float(mean @ k) + 0.4**2 / 2 * float(k @ cov @ k) for k in seen.keys[head // group, 2:].double()
            ]
            expected[head // group, 2:] += torch.tensor(logits).softmax(-1) / group
        expected = (expected + 0.01) * seen.values.norm(dim=-1)
        scores = self.policy(horizon=horizon, epsilon=0.01).scores(seen)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("rope", ROPES)
    def test_what_sampled_queries_give(self, rope):
        """Draw queries from N(mu, S), rotate each to the positions to come: the mean of exp(mean logit)."""
        seen, queries = self.seen(rope, heads=1, group=1)
        mean, cov = queries[:, 0].mean(0), queries[:, 0].T.cov(correction=0)
        g = torch.Generator().manual_seed(1)
        drawn = mean + torch.randn(200_000, self.D, generator=g).double() @ torch.linalg.cholesky(cov).T
        horizon = 40
        logits = sum(turned(drawn, seen.logical + i, rope, self.D) @ seen.keys[0].double().T for i in range(horizon))
        weights = (0.4 * logits / horizon).exp().mean(0)[2:]
        scores = self.policy(horizon=horizon).scores(seen)[0, 2:].double() / seen.values[0, 2:].norm(dim=-1)
        torch.testing.assert_close(scores, weights / weights.sum(), rtol=0.03, atol=1e-4)

    def test_one_position_one_query_is_plain_attention(self):
        """No spread and a horizon of 1: softmax of the rotated query's logits, times the norms."""
        rope = Rope(torch.tensor([0.5]).double())
        seen = view([[0, 1, 2]], keys=[[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
        query = torch.tensor([[1.0, 2.0]])
        seen.moments, seen.rope = QuerySums(3, 3 * query, 3 * query[:, :, None] * query[:, None, :]), rope
        c, s = math.cos(1.5), math.sin(1.5)
        x, y = c - 2 * s, 2 * c + s  # (1, 2) turned by 3 * 0.5
        attention = torch.tensor([x, y, x + y]).softmax(-1)
        norms = torch.tensor([1, 1, 2**0.5])
        policy = self.policy(horizon=1, sinks=0)
        torch.testing.assert_close(policy.scores(seen)[0], attention * norms, rtol=1e-5, atol=1e-6)

    def test_large_values_and_sinks_stay(self):
        seen, _ = self.seen(self.ROPES[0].values[0])
        values = torch.ones(2, 9, self.D)
        values[:, 4] = 1e4
        seen.load = lambda which, keys=seen.keys: keys if which == "keys" else values
        kept = self.policy(epsilon=1.0).select(seen, 4)
        assert kept[:, [0, 1, 2, 3]].tolist() == [[0, 1, 4, 8]] * 2

    def test_a_model_without_rope_is_refused(self):
        facts = Facts(4, 1, 32, 1000, 4096, 512)
        self.policy().check(facts)
        with pytest.raises(PolicyError, match="RoPE"):
            self.policy().check(facts._replace(rope_problem="nobody knows it"))

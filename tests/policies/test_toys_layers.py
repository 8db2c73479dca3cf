"""Elastic Cache, PrefixKV and TriAttention on examples small enough to check by hand."""

import math
from fractions import Fraction
from itertools import product

import pytest
import torch

from kvserve.policy import Facts, Merged, Moment, PolicyError, Rope, request
from kvserve.testing import layer_view
from policies.elastic_cache import nearest
from policies.prefixkv import fixed_up, lengths, prefix_lengths, priorities

FACTS = Facts(4, 4, 32, 1000, 4096, 512)


def view(importance, *, prompt=None, logical=None, positions=None, heads=2, memo=None, calibration=None, layer=0):
    """A layer whose mass has this mean over heads and query heads; keys are slot + 1, values 10 * (slot + 1)."""
    n = len(importance)
    tilt = torch.tensor([[0.5, 1.0], [0.75, 1.75]])[:heads]  # (H, G): heads disagree about how much, not on average
    mass = torch.tensor(importance, dtype=torch.float32)[None, :, None] * (tilt / tilt.mean())[:, None]
    at = torch.arange(n) if positions is None else torch.as_tensor(positions)
    content = torch.arange(1.0, n + 1).expand(heads, -1)[..., None].repeat(1, 1, 2)
    return layer_view(
        content, 10 * content, positions=at, layer=layer, num_layers=4, logical=n if logical is None else logical,
        mass=mass, prompt=n if prompt is None else prompt, memo={} if memo is None else memo, calibration=calibration,
    )  # fmt: skip


def noise(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)).tolist()


def kept(choice):
    """The one set of slots of all heads."""
    slots = choice.slots if isinstance(choice, Merged) else choice
    assert all(row == slots[0].tolist() for row in slots.tolist())
    return slots[0].tolist()


class TestElasticCache:
    SCORES = [9, 1, 7, 3, 8, 2]

    def test_merging(self):
        """Anchors {2, 4}; 1 -> 2 and, a tie, 3 -> 2; keep {0, 2, 4, 5}."""
        policy = request.parse("elastic-cache:4")
        choice = policy.select(view(self.SCORES), 4)
        assert kept(choice) == [0, 2, 4, 5]
        assert choice.merged == 2
        assert choice.keys[0, :, 0].tolist() == [1, 3, 5, 6]
        assert choice.values[1, :, 1].tolist() == [10, 30, 50, 60]

    def test_keys_may_stay_and_nothing_may_merge(self):
        values = request.parse({"name": "elastic-cache", "budget": 4, "merge": "values"}).select(view(self.SCORES), 4)
        assert values.keys is None and values.values[0, :, 0].tolist() == [10, 30, 50, 60]
        plain = request.parse({"name": "elastic-cache", "budget": 4, "merge": "none"}).select(view(self.SCORES), 4)
        assert isinstance(plain, torch.Tensor) and kept(plain) == [0, 2, 4, 5]

    def test_release_keeps_positions_of_high_indices(self):
        """argsort([9, 1, 7, 3, 8, 2]) = [1, 5, 3, 2, 4, 0]: {1, 2, 4} instead of {0, 2, 4}; behind a sink."""
        scores = [5, *self.SCORES, 1]
        paper = request.parse({"name": "elastic-cache", "budget": 5})
        assert kept(paper.select(view(scores), 5)) == [0, 1, 3, 5, 7]
        release = request.parse({"name": "elastic-cache", "budget": 5, "variant": "release"})
        choice = release.select(view(scores), 5)
        assert kept(choice) == [0, 2, 3, 5, 7]
        # Evicted are 1, 4, 6, taken from 0, 3, 5: the sink goes into anchor 2, anchors 3 and 5 into themselves.
        assert choice.keys[0, :, 0].tolist() == [1, (3 + 1) / 2, 4, 6, 8]

    def test_release_is_right_for_falling_scores(self):
        falling = list(range(40, 0, -1))
        choices = [
            request.parse({"name": "elastic-cache", "budget": 12, "variant": v}).select(view(falling), 12)
            for v in ("paper", "release")
        ]
        assert kept(choices[0]) == kept(choices[1]) == [*range(11), 39]

    def test_every_candidate_is_in_one_bucket_and_constants_stay(self):
        policy = request.parse("elastic-cache:20")
        seen = view(noise(100))
        choice = policy.select(seen, 20)
        assert choice.merged == 80
        seen = view(noise(100))
        seen.load = lambda _: torch.full((2, 100, 3), 2.5)
        assert (policy.select(seen, 20).keys == 2.5).all()

    def test_nearest_anchor(self):
        anchors, points = torch.tensor([3, 6, 20]), torch.tensor([0, 3, 4, 5, 7, 13, 14, 19, 30])
        assert nearest(anchors, points).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert nearest(anchors[:1], points).tolist() == [0] * 9

    def test_nearest_is_in_token_positions_not_slots(self):
        """After a compaction between chunks: slot 2 is next to slot 1, but its token is nearer to that of slot 3."""
        policy = request.parse("elastic-cache:4")
        positions = [0, 1, 8, 9, 10]
        choice = policy.select(view([1, 9, 1, 8, 1], positions=positions, logical=11, prompt=64), 4)
        assert kept(choice) == [0, 1, 3, 4]
        assert choice.keys[0, :, 0].tolist() == [1, 2, 3.5, 5]

    def test_generated_tokens_are_not_merged(self):
        policy = request.parse("elastic-cache:4")
        seen = view([*self.SCORES, 0, 0], prompt=6)
        choice = policy.select(seen, 4)
        # Prompt to {0, 2, 4, 5}, x = 4 // 2: slots 4 and 5 go with what they took in.
        assert kept(choice) == [0, 2, 6, 7]
        assert choice.keys[0, :, 0].tolist() == [1, 3, 7, 8]
        assert choice.merged == 2
        assert isinstance(policy.select(view([1] * 8, prompt=6, memo=seen.memo), 6), torch.Tensor)

    def test_all_workers_heads_have_a_say(self):
        """The importance is that of all heads: here another worker's decide."""
        policy = request.parse({"name": "elastic-cache", "budget": 4, "merge": "none"})
        seen = view(self.SCORES)
        seen.mean_over_workers = lambda x: (x + torch.tensor([0.0, 30, 0, 30, 0, 0])) / 2
        assert kept(policy.select(seen, 4)) == [0, 1, 3, 5]

    def test_a_budget_without_anchor_is_refused(self):
        with pytest.raises(PolicyError, match="protects 3"):
            request.parse({"name": "elastic-cache", "budget": 3, "sinks": 2})


class TestFixedPoint:
    @staticmethod
    def one_by_one(slots, prompt, upto, limit, x):
        """The papers' way: after each token, delete slot x if floor(length - limit) >= 1."""
        slots = list(slots)
        for seen in range(prompt + 1, upto + 1):
            slots.append(seen - 1)
            if math.floor(len(slots) - limit(seen)) >= 1:
                del slots[x]
        return slots

    @staticmethod
    def in_rounds(policy, slots, prompt, memo, acts):
        """Ours: at each of the logical lengths `acts`."""
        at = torch.tensor(slots)
        for seen in acts:
            at = torch.cat([at, torch.arange(int(at.max()) + 1, seen)])
            keep = policy.due(Moment(seen, len(at), "decode", prompt))
            if keep is not None:
                layer = view([0.0] * len(at), prompt=prompt, logical=seen, positions=at, memo=memo)
                at = at[kept(policy.select(layer, keep))]
        return at.tolist()

    @pytest.mark.parametrize("budget", [0.2, 0.33, 0.5, 0.9, 60, 100])
    def test_rounds_equal_single_deletions(self, budget):
        for prompt, distance in product((40, 101, 160, 300), (-25, -1, 7)):
            self.compare(budget, prompt, distance)

    def compare(self, budget, prompt, distance):
        case = f"prompt of {prompt}, distance {distance}"
        policy = request.parse({"name": "elastic-cache", "budget": budget, "distance": distance, "slack": 16})
        share = Fraction(str(budget))
        limit = (lambda seen: budget) if isinstance(budget, int) else (lambda seen: share * seen)
        memo, start = {}, list(range(prompt))
        if (keep := policy.due(Moment(prompt, prompt, "prefilled", prompt))) is not None:
            assert keep == math.ceil(limit(prompt))
            start = kept(policy.select(view(noise(prompt), memo=memo), keep))
        x = distance if distance > 0 else len(start) + distance
        x = x if 1 <= x < len(start) else len(start) // 2
        upto = prompt + 320 - prompt % 16
        single = self.one_by_one(start, prompt, upto, limit, x)
        rounds = self.in_rounds(policy, start, prompt, memo, range(prompt - prompt % 16 + 16, upto + 1, 16))
        assert rounds == single, case
        assert len(rounds) == min(upto, math.ceil(limit(upto))), case
        assert rounds[:x] == start[:x], case  # slots before x never change
        assert rounds[-1] == upto - 1, case

    @pytest.mark.parametrize("budget", [0.25, 0.5, 60])
    @pytest.mark.parametrize("late", [1, 2, 50, 333])
    @pytest.mark.parametrize("name", ["elastic-cache", "prefixkv"])
    def test_a_late_first_act_equals_one_in_time(self, name, budget, late):
        policy = request.parse({"name": name, "budget": budget, "slack": 16})
        scores, prompt = noise(200), 200
        memo = {}
        keep = policy.target(prompt, prompt)
        start = kept(policy.select(view(scores, memo=memo), keep))
        limit = (lambda _: budget) if isinstance(budget, int) else (lambda seen: Fraction(str(budget)) * seen)
        single = self.one_by_one(start, prompt, prompt + late, limit, memo["fixed"])
        whole = view(scores + [0.0] * late, prompt=prompt)
        found = kept(policy.select(whole, policy.target(prompt + late, prompt)))
        assert found == single
        assert whole.memo == memo

    def test_an_uneven_layer_that_is_late_ranks_to_its_own_share(self):
        """Kept 120 of a mean of 60 at length 240, so 100 of 50 at the prompt's end."""
        policy = request.parse({"name": "prefixkv", "budget": 0.25})
        late = view(noise(200) + [0.0] * 40, prompt=200)
        assert len(kept(policy.select(late, 120))) == 120
        assert late.memo["fixed"] == 100 - 25

    def test_chunks_are_ranked_and_leave_no_fixed_slot(self):
        policy = request.parse({"name": "prefixkv", "budget": 0.5, "prefill": "chunks"})
        chunk = view([9, 1, 7, 3, 8, 2], prompt=64)
        assert kept(policy.select(chunk, 4)) == [0, 2, 4, 5]
        assert chunk.memo == {}

    def test_a_prompt_that_fits_sets_the_slot(self):
        policy = request.parse("elastic-cache:100")
        seen = view([1.0] * 128, prompt=40)
        choice = policy.select(seen, 100)
        assert isinstance(choice, torch.Tensor)
        assert kept(choice) == [*range(15), *range(43, 128)]

    def test_the_slot_lies_in_the_prompt_behind_the_sinks(self):
        policy = request.parse({"name": "elastic-cache", "budget": 64, "sinks": 4})
        assert [policy.fixed_slot(n) for n in (64, 29, 28, 10, 6)] == [39, 4, 14, 5, 4]
        far = request.parse({"name": "elastic-cache", "budget": 64, "distance": 64})
        assert [far.fixed_slot(n) for n in (65, 64)] == [64, 32]


class TestPrefixKV:
    STEEP, FLAT = [5, 2, 1, 1, 0.5, 0.5], [2.0, 2, 2, 2, 1, 1]

    def test_prefix_lengths_at_a_threshold(self):
        held = priorities(torch.tensor([self.STEEP, self.FLAT])).cumsum(1)
        table = {0.3: [1, 2], 0.5: [1, 3], 0.6: [2, 3], 0.7: [2, 4], 0.8: [3, 4], 0.9: [4, 5]}
        for p, expected in table.items():
            assert lengths(held, p - 1e-9).tolist() == expected

    def test_half_of_twelve(self):
        """p = .7 gives (2, 4), not (3, 3)."""
        best = priorities(torch.tensor([self.STEEP, self.FLAT]))
        assert prefix_lengths(best, 6).tolist() == [2, 4]

    def test_every_budget_is_met_exactly_and_grows_with_the_share(self):
        g = torch.Generator().manual_seed(1)
        best = priorities(torch.rand(5, 80, generator=g) ** torch.tensor([[1.0], [2], [4], [8], [0]]))
        held = torch.cat([torch.zeros(5, 1), best.cumsum(1)], dim=1)
        before = torch.zeros(5, dtype=torch.long)
        for total in range(5, 401):
            counts = prefix_lengths(best, total)
            assert int(counts.sum()) == total
            assert counts.min() >= 1 and counts.max() <= 80
            assert (counts >= before - 1).all()
            # All layers hold the same share within one token.
            low, high = (held.gather(1, (counts + i)[:, None].clamp(0, 80)) for i in (-1, 1))
            assert low.max() <= high.min() + 1e-9 or counts.min() == 1
            assert all(a + 1 >= b for a, b in zip(counts[[4, 0, 1, 2]], counts[[0, 1, 2, 3]], strict=True))
            before = counts

    def test_equal_scores_share_alike(self):
        best = priorities(torch.ones(4, 10))
        assert prefix_lengths(best, 20).tolist() == [5] * 4
        assert sorted(prefix_lengths(best, 22).tolist()) == [5, 5, 6, 6]

    def test_scores_of_zero_do_not_matter(self):
        best = priorities(torch.tensor([[1.0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]))
        assert prefix_lengths(best, 3).tolist() == [1, 2]
        assert prefix_lengths(best, 7).tolist() == [3, 4]
        assert prefix_lengths(best, 10).tolist() == [5, 5]

    def test_fix_up(self):
        best = priorities(torch.tensor([self.STEEP, self.FLAT]))
        assert fixed_up(torch.tensor([2, 3]), best, 6).tolist() == [2, 4]  # gains .1 and .2
        assert fixed_up(torch.tensor([4, 5]), best, 6).tolist() == [2, 4]  # the smallest go: .1, .1, .1
        assert fixed_up(torch.tensor([6, 1]), best, 2).tolist() == [1, 1]

    def test_selection(self):
        policy = request.parse("prefixkv:4")
        assert kept(policy.select(view([9, 1, 7, 3, 8, 2]), 4)) == [0, 2, 4, 5]
        assert kept(policy.select(view([0, 1, 7, 3, 8, 0]), 3)) == [0, 4, 5]

    def test_own_shares(self):
        """The mean is the budget, a flat layer gets more, and every layer one beside sink and last token."""
        policy = request.parse("prefixkv:20")
        layers = [[x**power for x in noise(100)] for power in (0, 2, 6, 40)]
        shares = policy.own_shares_of([view(layer) for layer in layers], 20)
        assert sum(shares) == 80
        assert shares == sorted(shares, reverse=True)
        assert min(shares) >= 3
        assert policy.own_shares_of([view([1.0] * 9)] * 4, 9) == [9] * 4
        assert policy.own_shares_of([view([1.0, *[0.0] * 8]), view([1.0] * 9)], 3) == [3, 3]

    def test_offline_equals_online_where_calibrated(self):
        online = request.parse("prefixkv:20")
        offline = request.parse({"name": "prefixkv", "budget": 20, "profile": "offline"})
        layers = [[x**power for x in noise(100)] for power in (0, 2, 6, 40)]
        shares = torch.tensor([online.own_shares_of([view(x) for x in layers], b) for b in (10, 20, 50)]).T / 100
        budgets = torch.tensor([0.1, 0.2, 0.5])
        views = [
            view(layer, calibration={"budgets": budgets, "keep_share": share})
            for layer, share in zip(layers, shares, strict=True)
        ]
        for budget in (10, 20, 50):
            assert offline.own_shares_of(views, budget) == online.own_shares_of(views, budget)
        between = offline.own_shares_of(views, 35)
        assert sum(between) == 4 * 35
        middle = (shares[:, 1] + shares[:, 2]) * 50
        assert (torch.tensor(between) - middle).abs().max() <= 1.5
        for budget in (3, 5, 80, 100):  # beyond what was calibrated
            found = offline.own_shares_of(views, budget)
            assert sum(found) == 4 * budget and min(found) >= 3 and max(found) <= 100

    def test_what_the_server_must_have(self):
        request.parse("prefixkv").check(FACTS)
        offline = request.parse({"name": "prefixkv", "profile": "offline"})
        offline.check(FACTS._replace(calibrated=("prefixkv",)))
        with pytest.raises(PolicyError, match="--kv-calibration FILE, made by `kvserve calibrate"):
            offline.check(FACTS)
        with pytest.raises(PolicyError, match="--kv-groups"):
            request.parse({"name": "prefixkv", "granularity": "layer"}).check(FACTS._replace(groups=1))


ROPE = Rope(torch.tensor([1.0, 0.1], dtype=torch.float64))
Q_MEAN, Q_ABS = torch.tensor([[1, 0.5 + 0.5j]]), torch.tensor([[1.25, 1.0]])
KEYS = torch.tensor([[1, 0.2], [1j, 1 + 1j], [0.5, -1]])  # before RoPE
AT = torch.tensor([0, 3, 7])


def turned(bands, positions, rope=ROPE):
    """Keys as they are cached, (n, D)."""
    bands = bands * rope.phases(positions) * rope.factor
    return rope.channels(bands, bands.real)


def tri(keys, *, logical=10, mean=Q_MEAN, moduli=Q_ABS, positions=None, prompt=0, rope=ROPE, layer=0):
    """keys (H, n, D) post-RoPE."""
    at = torch.arange(keys.shape[1]) if positions is None else positions
    return layer_view(
        keys, positions=at, layer=layer, num_layers=4, logical=logical, prompt=prompt, rope=rope,
        calibration={"q_mean": mean.to(torch.complex64), "q_abs": moduli.float()},
    )  # fmt: skip


def parsed(**fields):
    return request.parse({"name": "triattention", "budget": 2, "offsets": 5, "protect_prompt": False, **fields})


def random_layer(seed, heads=2, group=3, n=50, bands=4, factor=1.0, **options):
    g = torch.Generator().manual_seed(seed)
    rope = Rope(10000.0 ** -(torch.arange(bands, dtype=torch.float64) / bands), factor)
    mean = torch.randn(heads * group, bands, generator=g, dtype=torch.complex64)
    moduli = mean.abs() * (1 + torch.rand(mean.shape, generator=g))
    plain = torch.randn(heads, n, bands, generator=g, dtype=torch.complex64)
    keys = torch.stack([turned(k, torch.arange(n), rope) for k in plain])
    return plain, tri(keys, logical=n, mean=mean, moduli=moduli, rope=rope, layer=seed, **options)


class TestTriAttention:
    def toy(self, shift=0, **fields):
        seen = tri(turned(KEYS, AT + shift)[None], logical=10 + shift, **fields)
        return lambda **options: parsed(**options).scores(seen, slice(0, 3))[0, 0]

    def test_scores(self):
        scores = self.toy()
        trig, norm = torch.tensor([0.370526, 0.276386, 0.203383]), torch.tensor([0.308579, 0.664214, 0.417893])
        assert torch.allclose(scores(norm=False), trig, atol=1e-6)
        assert torch.allclose(scores(trig=False), norm, atol=1e-6)
        assert torch.allclose(scores(), torch.tensor([0.679105, 0.940599, 0.621276]), atol=2e-6)
        assert parsed().select(tri(turned(KEYS, AT)[None], positions=AT[None]), 2).tolist() == [[0, 1]]

    def test_post_rope_form_equals_the_papers(self):
        """sum_f |E q||k| cos(w (t - p + offset) + arg(E q conj k)) from unrotated keys, in float64."""
        plain, seen = random_layer(3, factor=1.3)
        wide = plain.to(torch.complex128)[:, None]  # (H, 1, n, R)
        mean = seen.calibration["q_mean"].to(torch.complex128).view(2, 3, 1, 4)
        phase, size = (mean * wide.conj()).angle(), mean.abs() * wide.abs()
        gap = seen.logical - torch.arange(50)[:, None]
        at = [(size * torch.cos(seen.rope.inv_freq * (gap + 2**j) + phase)).sum(-1) for j in range(17)]
        for aggregate, expected in (("mean", torch.stack(at).mean(0)), ("max", torch.stack(at).amax(0))):
            found = parsed(norm=False, offsets=17, aggregate=aggregate).scores(seen, slice(0, 50))
            assert torch.allclose(found.double(), expected, atol=1e-5)
        norm = ((seen.calibration["q_abs"].double().view(2, 3, 1, 4) - mean.abs()) * wide.abs()).sum(-1)
        assert torch.allclose(parsed(trig=False).scores(seen, slice(0, 50)).double(), norm, atol=1e-5)

    def test_full_concentration_has_no_norm_term(self):
        scores = self.toy(moduli=Q_MEAN.abs())
        assert torch.allclose(scores(trig=False), torch.zeros(3), atol=1e-6)
        assert torch.allclose(scores(), scores(norm=False), atol=1e-6)

    def test_no_centre_leaves_norms_whatever_the_positions(self):
        scores = self.toy(mean=torch.zeros(1, 2, dtype=torch.complex64))
        assert torch.allclose(scores(), (Q_ABS * KEYS.abs()).sum(-1), atol=1e-6)

    def test_ablation_of_concentration(self):
        assert torch.allclose(self.toy()(trig=False, concentration=False), (Q_ABS * KEYS.abs()).sum(-1), atol=1e-6)

    @pytest.mark.parametrize("shift", [1, 1000, 100_000])
    def test_shifting_all_positions_changes_nothing(self, shift):
        assert torch.allclose(self.toy(shift)(), self.toy()(), atol=1e-4)

    def test_scaling_a_heads_keys_changes_nothing(self):
        _, seen = random_layer(5)
        _, scaled = random_layer(5)
        keys = seen.keys.clone()
        keys[1] *= 7
        scaled.load = lambda _: keys
        assert parsed().select(seen, 20).tolist() == parsed().select(scaled, 20).tolist()

    def test_equal_keys_have_votes_of_zero(self):
        seen = tri(torch.zeros(1, 6, 4))
        assert parsed().votes(seen).tolist() == [[0.0] * 6]
        assert parsed().select(seen, 2).tolist() == [[4, 5]]

    def test_per_head_sets_are_those_of_all_layers(self):
        layers = [random_layer(seed)[1] for seed in range(4)]
        policy = parsed()
        mean = torch.stack([policy.votes(seen) for seen in layers]).mean(0)
        for seen in layers:
            seen.forget()
        choices = list(policy.choose(layers, [20] * 4))
        assert all(torch.equal(choice, choices[0]) for choice in choices)
        assert choices[0][0].tolist() != choices[0][1].tolist()
        for head in range(2):
            assert set(choices[0][head].tolist()) == set(mean[head].topk(20).indices.tolist())
        assert not any("keys" in seen.__dict__ for seen in layers)  # read one by one

    def test_per_layer_per_head_sets_are_their_own(self):
        layers = [random_layer(seed)[1] for seed in range(3)]
        policy = parsed(mode="per_layer_per_head")
        choices = list(policy.choose(layers, [20] * 3))
        for seen, choice in zip(layers, choices, strict=True):
            assert choice.tolist() == policy.votes(seen).topk(20).indices.sort().values.tolist()
        assert choices[0].tolist() != choices[1].tolist()

    def test_union_is_one_set_by_the_papers_vote(self):
        layers = [random_layer(seed)[1] for seed in range(3)]
        policy = parsed(mode="union")
        scores = torch.cat([policy.scores(seen, slice(0, 50)).flatten(0, 1) for seen in layers])
        z = (scores - scores.mean(-1, keepdim=True)) / scores.std(-1, keepdim=True, correction=0)
        elected = sorted(set(z.topk(20).indices.flatten().tolist()))
        highest = z.amax(0)
        expected = sorted(sorted(elected, key=lambda i: -highest[i])[:20])
        for choice in policy.choose(layers, [20] * 3):
            assert choice.tolist() == [expected] * 2

    def test_layers_that_hold_other_tokens_decide_apart(self):
        together = [random_layer(seed)[1] for seed in range(2)]
        apart = random_layer(2)[1]
        apart.positions = apart.positions + 1
        one, other, two = parsed().choose([together[0], apart, together[1]], [20, 21, 20])
        assert torch.equal(one, two)
        assert other.tolist() == parsed().select(apart, 21).tolist()

    def test_prompt_and_recent_tokens_stay_and_do_not_vote(self):
        policy = request.parse({"name": "triattention", "budget": 10, "recent": 4})
        _, seen = random_layer(7, prompt=30)
        votes = policy.votes(seen)
        assert torch.isinf(votes[:, :30]).all() and torch.isinf(votes[:, 46:]).all()
        _, other = random_layer(7, prompt=30)
        keys = other.keys.clone()
        keys[:, :30] = 100.0
        other.load = lambda _: keys
        other.forget()
        assert torch.equal(policy.votes(other), votes)
        for row in policy.select(seen, 40).tolist():
            assert row[:30] == list(range(30)) and row[-4:] == list(range(46, 50))

    def test_the_budget_counts_generated_tokens(self):
        policy = request.parse("triattention:100")
        assert policy.target(1128, 1000) == 1100
        assert policy.due(Moment(1000, 1000, "prefilled", 1000)) is None
        assert policy.due(Moment(512, 512, "prefill", 1000)) is None
        assert policy.due(Moment(1152, 1152, "decode", 1000)) == 1100
        half = request.parse("triattention:0.5")
        assert [half.target(n, 1000) for n in (400, 1000, 1001, 1300)] == [400, 1000, 1001, 1150]
        everything = request.parse({"name": "triattention", "budget": 100, "protect_prompt": False})
        assert everything.due(Moment(1000, 1000, "prefilled", 1000)) == 100

    def test_what_the_server_must_have(self):
        ready = FACTS._replace(calibrated=("queries",))
        request.parse("triattention").check(ready)
        with pytest.raises(PolicyError, match="--kv-calibration FILE, made by `kvserve calibrate"):
            request.parse("triattention").check(FACTS)
        with pytest.raises(PolicyError, match="RoPE"):
            request.parse("triattention").check(ready._replace(rope_problem="nobody knows it"))
        with pytest.raises(PolicyError, match="tensor parallelism 1"):
            parsed(mode="union").check(ready._replace(tensor_parallel=2))
        with pytest.raises(PolicyError, match="both false"):
            parsed(trig=False, norm=False)

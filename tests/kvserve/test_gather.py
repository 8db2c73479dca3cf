"""Counting queries: in chunks, late, every n-th, and through a compaction, against the whole matrix."""

from typing import ClassVar

import pytest
import torch

from kvserve.cache.records import Location, Record, Span
from kvserve.evidence.gather import Gatherer
from kvserve.evidence.queries import FOLD, QueryRings
from kvserve.policy import Evidence, Mass, Moments, Policy
from kvserve.policy.requirements import Asks
from kvserve.policy.rope import Rope
from kvserve.policy.softmax import Softmax
from tests.kvserve.layers import layer, plain_cache
from tests.kvserve.test_mass import naive

H, G, D, N = 2, 2, 8, 300
CPU = torch.device("cpu")


class Watching(Policy):
    name: ClassVar[str] = "watching"
    every: int = 1

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return Mass(self.every, observes="all"), Moments(observes="all")


class GatherWorld:
    """One layer, one request "r", contiguous blocks of 16 slots."""

    def __init__(self, prompt=N, policy=None):
        g = torch.Generator().manual_seed(0)
        self.queries = torch.randn(N, H * G, D, generator=g)
        self.keys = torch.randn(H, N, D, generator=g)
        rope = Rope(torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64))
        self.layer = layer(0, plain_cache(40, H, D), H, 0.3, rope)
        self.rings = QueryRings(CPU)
        self.gather = Gatherer(self.rings, {0: [self.layer]})
        self.record = Record("r", "watching", asks=Asks.of(policy or Watching()), prompt=prompt)
        for observer in (self.rings, self.gather):
            observer.begin(self.record, 0)

    @property
    def gathered(self):
        return self.record.observed[self.gather]

    def span(self, position, count):
        def locate(slots):
            return {0: Location("r", 0, slots, slots, torch.arange(-(-slots // 16)))}

        return Span(self.record, 0, position, count, locate)

    def step(self, position, count):
        """Run attention over these tokens of the request."""
        slots = position + count
        span, query = self.span(position, count), self.queries[position:slots]
        active = [observer for observer in (self.rings, self.gather) if observer.begin_step([span])]
        self.layer.cache.keys.write(torch.arange(-(-slots // 16)), self.keys[:, :slots])
        for observer in active:
            observer.before(self.layer, query)
        for observer in active:
            observer.after(self.layer, query, torch.empty(0))

    def catch_up(self, logical):
        self.gather.catch_up(self.record, self.layer, logical, lambda: self.keys[:, :logical])

    def mass(self, slots=N):
        return self.gathered.layers[0].mass_of(slots).transpose(1, 2)


@pytest.mark.parametrize("chunks", [[N], [100, 100, 100], [1, 63, 17, 219]])
def test_chunks_add_up(chunks):
    world, position = GatherWorld(), 0
    for count in chunks:
        world.step(position, count)
        position += count
    assert torch.allclose(world.mass().double(), naive(world.queries, world.keys, Softmax(0.3), 0), atol=1e-4)


def test_generated_tokens_count_when_it_is_time():
    world = GatherWorld(prompt=150)
    world.step(0, 150)
    for position in range(150, N):
        world.step(position, 1)
    assert world.gathered.layers[0].upto == 150 + FOLD  # late, but nothing was lost
    world.catch_up(N)
    assert torch.allclose(world.mass().double(), naive(world.queries, world.keys, Softmax(0.3), 0), atol=1e-4)


@pytest.mark.parametrize("chunks", [[N], [100, 101, 99]])
def test_every_third_query(chunks):
    """The same queries whatever the chunks: those at positions that are multiples of 3."""
    world, position = GatherWorld(policy=Watching(every=3)), 0
    for count in chunks:
        world.step(position, count)
        position += count
    assert torch.allclose(
        world.mass().double(), 3 * naive(world.queries[::3], world.keys, Softmax(0.3), 0, 3), atol=1e-4
    )


def test_mass_stays_with_its_slots():
    world = GatherWorld()
    world.step(0, 200)
    before = world.mass(200).clone()
    stay = torch.stack([torch.arange(0, 200, 2), torch.arange(100, 200)])
    world.gather.compacted(world.record, world.layer, stay)
    after = world.mass(110)
    assert torch.equal(after[:, :, :100], before.gather(2, stay[:, None].expand(-1, G, -1)))
    assert (after[:, :, 100:] == 0).all()


def test_moments_are_those_before_rotation_without_sinks():
    world = GatherWorld()
    world.step(0, 2)
    world.step(2, N - 2)
    moments = world.gathered.layers[0].moments
    back = world.layer.rope.undo(world.queries, torch.arange(N))[4:]
    assert moments.count == N - 4
    assert torch.allclose(moments.total, back.sum(0), atol=1e-3)
    assert torch.allclose(moments.outer, torch.einsum("whd,whe->hde", back, back), atol=1e-2)


@pytest.mark.parametrize("neox", [True, False])
def test_undo_undoes_a_rotation(neox):
    rope = Rope(torch.tensor([1.0, 0.1], dtype=torch.float64), factor=1.5, neox=neox)
    x, at = torch.randn(7, 3, 6), torch.arange(5, 12)
    turned = rope.channels(rope.bands(x) * rope.phases(at)[:, None] * 1.5, x)
    assert not torch.allclose(turned[..., :4], x[..., :4])
    assert torch.equal(turned[..., 4:], x[..., 4:])  # partial rotary embedding
    assert torch.allclose(rope.undo(turned, at), x, atol=1e-5)

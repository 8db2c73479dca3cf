"""Query rings hold the last queries of those who asked, whatever the chunks and the batch."""

import random

import torch

from kvserve.cache.records import Record, Span
from kvserve.evidence.queries import QueryRings
from kvserve.policy.requirements import Asks
from tests.kvserve.layers import layer

HQ, D = 4, 8


def query(req_id, position, layer):
    generator = torch.Generator().manual_seed(hash((req_id, position, layer)) % 2**31)
    return torch.randn(HQ, D, generator=generator)


def seat(rings, name, window, first):
    record = Record(name, "watching", asks=Asks(query_window=window))
    rings.begin(record, first)
    return record


def spans_of(rings, spans):
    return [span for span in spans if rings in span.record.observed]


def test_random_traffic():
    rnd = random.Random(0)
    rings = QueryRings(torch.device("cpu"))
    length, window, records = {}, {}, {"stranger": Record("stranger", "none")}
    for step in range(200):
        if rnd.random() < 0.2:
            name = f"r{step}"
            window[name] = rnd.choice([3, 7, 16])
            length[name] = first = rnd.choice([0, 0, 32])
            records[name] = seat(rings, name, window[name], first)
            length[name + "/first"] = first
        if rnd.random() < 0.05 and window:
            gone = rnd.choice(list(window))
            rings.end(records.pop(gone))
            del window[gone]
        batch = [*rnd.sample(list(window), min(len(window), 3)), "stranger"]
        rnd.shuffle(batch)
        spans, rows, row = [], [], 0
        for name in batch:
            count, start = rnd.choice([1, 1, 5, 40]), length.get(name, 0)
            spans.append(Span(records[name], row, start, count, None))
            rows += [(name, start + i) for i in range(count)]
            row += count
            length[name] = start + count
        active = rings.begin_step(spans_of(rings, spans))
        for index in range(2):
            if active:
                rings.before(layer(index), torch.stack([query(n, p, index) for n, p in rows]))
        for name in window:
            first, logical = length[name + "/first"], length[name]
            if logical == first:
                continue
            found, at = rings.last(records[name], layer(1), logical)
            start = max(first, logical - window[name])
            assert at.tolist() == list(range(start, logical))
            assert torch.equal(found, torch.stack([query(name, p, 1) for p in range(start, logical)]))
    assert len(rings) == len(window)


def test_no_takers_no_work():
    rings = QueryRings(torch.device("cpu"))
    stranger = seat(rings, "a", 0, 0)
    assert not stranger.observed
    assert not rings.begin_step(spans_of(rings, [Span(stranger, 0, 0, 5, None)]))
    assert rings.last(stranger, layer(0), 5) == (None, None)


def test_seats_are_used_again():
    rings = QueryRings(torch.device("cpu"))
    for i in range(50):
        rings.end(seat(rings, f"r{i}", 16, 0))
    assert rings._rows == 16

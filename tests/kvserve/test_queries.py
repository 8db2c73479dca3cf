"""Query rings hold the last queries of those who asked, whatever the chunks and the batch."""

import random

import torch

from kvserve.evidence.queries import QueryRings, Span

HQ, D = 4, 8


def query(req_id, position, layer):
    generator = torch.Generator().manual_seed(hash((req_id, position, layer)) % 2**31)
    return torch.randn(HQ, D, generator=generator)


def test_random_traffic():
    rnd = random.Random(0)
    rings = QueryRings(torch.device("cpu"))
    length, window = {}, {}
    for step in range(200):
        if rnd.random() < 0.2:
            name = f"r{step}"
            window[name] = rnd.choice([3, 7, 16])
            length[name] = first = rnd.choice([0, 0, 32])
            rings.seat(name, window[name], first)
            length[name + "/first"] = first
        if rnd.random() < 0.05 and window:
            gone = rnd.choice(list(window))
            rings.leave(gone)
            del window[gone]
        batch = [*rnd.sample(list(window), min(len(window), 3)), "stranger"]
        rnd.shuffle(batch)
        spans, rows, row = [], [], 0
        for name in batch:
            count, start = rnd.choice([1, 1, 5, 40]), length.get(name, 0)
            spans.append(Span(name, row, start, count))
            rows += [(name, start + i) for i in range(count)]
            row += count
            length[name] = start + count
        rings.begin_step(spans)
        for layer in range(2):
            if rings.active:
                rings.store(layer, torch.stack([query(n, p, layer) for n, p in rows]))
        for name in window:
            first, logical = length[name + "/first"], length[name]
            if logical == first:
                continue
            found, at = rings.last(name, 1, logical)
            start = max(first, logical - window[name])
            assert at.tolist() == list(range(start, logical))
            assert torch.equal(found, torch.stack([query(name, p, 1) for p in range(start, logical)]))
    assert len(rings) == len(window)


def test_no_takers_no_work():
    rings = QueryRings(torch.device("cpu"))
    rings.begin_step([Span("a", 0, 0, 5)])
    assert not rings.active
    assert rings.last("a", 0, 5) == (None, None)


def test_seats_are_used_again():
    rings = QueryRings(torch.device("cpu"))
    for i in range(50):
        rings.seat(f"r{i}", 16, 0)
        rings.leave(f"r{i}")
    assert rings._rows == 16

"""A structured start for a network that is to read summaries: as many heads as a chunk has tokens, one for each slot.

Text is started as in ``models.training.structure``: layer 0 looks back, layers 1 and 2 match and copy. A summary is
started as what these heads would like to find: in layer 0 head h of the summary fetches the token in slot h of its
chunk; in layer 1 and 2 its key in head h is that of the token in slot h, its value that token. So head h of a later
text finds in a summary what it would have found at slot h, and eight heads together miss nothing.

Slot 0 is the exception: what stands before it belongs to another chunk. Its text row knows (layer 0 looked back), so
layer 1 of the summary fetches from there what layer 2 needs for the key.
"""

import torch
from torch import Tensor

from models.summary.network import SummaryRows
from models.training.network import Network, NetworkShape
from models.training.structure import CONSTANT, random_basis, random_start

CODE, COPIED, TAIL = 14, 32, 6  # channels of a token's code; of what is copied; of the code of a token before slot 0
FAST = 5  # number of the highest RoPE frequencies used for looking back
LOOK_BACK_GAIN, MATCH_GAIN, COPY = 3.0, 2.0, 0.2
FAINT = 0.05


@torch.no_grad()
def initialise(network: Network, own: SummaryRows, seed: int) -> None:
    """Set all weights in place; the network needs as many heads and KV heads as a chunk has tokens."""
    torch.manual_seed(seed)
    random_start(network)
    basis, slots = random_basis(network.shape.width), network.shape.heads
    places, free = basis[:, : slots * CODE].split(CODE, 1), basis[:, slots * CODE :]
    before = free[:, -3 * TAIL :].split(TAIL, 1)  # where a summary keeps the codes of the three tokens before its chunk
    _fetch_all(network, own, places, free)
    _match(network, own, 1, [10, 8], places, free, before)
    _match(network, own, 2, [6, 6], places, free, before)
    _fetch_before(network, own, places, before)
    own.embedding.zero_()
    own.embedding[:, 0] = CONSTANT
    for name in ("q", "k", "v"):
        last = getattr(own.layers[3], name).weight
        last.copy_(getattr(network.blocks[3].attention, name).weight)


def _fetch_all(network: Network, own: SummaryRows, places: tuple[Tensor, ...], free: Tensor) -> None:
    """Layer 0: head h of text reads the token h + 1 back, head h of a summary the token in slot h, into place h."""
    attention, shape, mine = network.blocks[0].attention, network.shape, own.layers[0]
    attention.q_norm.weight.fill_(LOOK_BACK_GAIN)
    attention.k_norm.weight.fill_(LOOK_BACK_GAIN)
    for weight in (attention.q.weight, attention.k.weight, attention.o.weight, mine.q.weight, mine.k.weight):
        weight.zero_()
    for head, place in enumerate(places):
        rows = _rows(shape, head)
        attention.k.weight[rows[:FAST], 0] = 1.0
        mine.k.weight[rows[:FAST], 0] = -1.0  # nobody looks at a summary here
        _look(attention.q.weight, shape, head, head + 1)
        _look(mine.q.weight, shape, head, len(places) - 1 - head)
        attention.v.weight[rows[:CODE]] = free[:, :CODE].T
        attention.o.weight[:, rows[:CODE]] = 0.1 * place
    mine.v.weight.copy_(attention.v.weight)


def _match(
    network: Network, own: SummaryRows, layer: int, sizes: list[int], places: tuple[Tensor, ...], free: Tensor, before
) -> None:
    """Every head matches the last tokens, ``sizes`` channels of each, with those before a key, and copies the key's."""
    attention, shape, mine = network.blocks[layer].attention, network.shape, own.layers[layer]
    attention.q_norm.weight.fill_(MATCH_GAIN)
    attention.k_norm.weight.fill_(MATCH_GAIN)
    for weight in (attention.q.weight, attention.k.weight, mine.q.weight, mine.v.weight):
        weight.zero_()
    mine.k.weight.normal_(0, 1e-3)
    known = [3.5 * free[:, :CODE], *places]  # the codes of a text row's own token and of those before it
    for head in range(shape.heads):
        rows, start = _rows(shape, head), 0
        for back, size in enumerate(sizes, layer - 1):
            at = rows[_slow(shape, start, size)]
            start += size
            attention.q.weight[at] = known[back][:, :size].T
            attention.k.weight[at] = places[back][:, :size].T
            mine.k.weight[at] = 0
            if head > back:
                mine.k.weight[at] = places[head - back - 1][:, :size].T
            elif layer == 2:
                mine.k.weight[at] = before[back - head][:, :size].T / FAINT
        copied = torch.cat((free[:, :CODE], free[:, CODE + head % 2 * 13 :][:, : COPIED - CODE]), 1)
        attention.v.weight[rows[:COPIED]] = copied.T if layer == 1 else 0.1 * attention.v.weight[rows[:COPIED]]
        mine.v.weight[rows[:CODE]] = 3.0 * places[head].T
        attention.o.weight[:, rows] = 0
        attention.o.weight[:, rows[:COPIED]] = COPY * copied


def _fetch_before(network: Network, own: SummaryRows, places: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> None:
    """Layer 1: a summary looks at slot 0 and notes the codes of the three tokens before it."""
    attention, shape = network.blocks[1].attention, network.shape
    for head in range(shape.heads):
        rows = _rows(shape, head)
        attention.k.weight[rows[:FAST], 0] = 0.3
        _look(own.layers[1].q.weight, shape, head, shape.heads - 1)
    for head, room in enumerate(before):
        rows = _rows(shape, head)[-TAIL:]
        attention.v.weight[rows] = FAINT * places[head][:, :TAIL].T
        attention.o.weight[:, rows] = room


def _look(weight: Tensor, shape: NetworkShape, head: int, back: int) -> None:
    """Make a head's queries look ``back`` tokens back, at keys that are constant in their fastest channels."""
    angles = -back * shape.frequencies()[:FAST]
    rows = _rows(shape, head)
    weight[rows[:FAST], 0] = angles.cos()
    weight[rows[shape.head_dim // 2 :][:FAST], 0] = angles.sin()


def _rows(shape: NetworkShape, head: int) -> Tensor:
    return torch.arange(head * shape.head_dim, (head + 1) * shape.head_dim)


def _slow(shape: NetworkShape, start: int, size: int) -> Tensor:
    """``size`` channels of a head that turn slowly, the slowest first, after ``start`` others."""
    half = shape.head_dim // 2
    order = torch.arange(half - 1, -1, -1).repeat_interleave(2)
    order[1::2] += half
    return order[start : start + size]

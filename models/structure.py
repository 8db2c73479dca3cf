"""A structured start: heads that look back and heads that match, so that training begins behind the phase change.

From a random start this network does not learn to look things up within minutes. Here layer 0 starts with four heads
that read the tokens 1 to 4 places back and store a code of each; layer 1 starts with heads that find the place whose
previous tokens equal the current ones, and copy the token found there. All weights stay free to move afterwards.
"""

import torch
from torch import Tensor

from models.network import Attention, Network

CODE = 32  # channels of one token's code
CONSTANT = 0.25  # value of the embedding's channel 0 for all tokens: a bias that q and k can read
SCALE = 0.02  # standard deviation of all that is not set below
LOOK_BACK_GAIN, MATCH_GAIN = 2.5, 2.0
FAST = 8  # number of the highest RoPE frequencies used for looking back
SLOW = 16  # number of the lowest RoPE frequencies used for matching, nearly free of position


@torch.no_grad()
def initialise(network: Network, seed: int) -> None:
    """Set all weights of ``network`` (width 256, 4 heads, 2 KV heads of 64) in place."""
    torch.manual_seed(seed)
    _random_start(network)
    basis = _basis(network.shape.width)
    places, free = basis[:, : 4 * CODE].split(CODE, 1), basis[:, 4 * CODE :]
    code = free[:, :CODE].T
    _look_back(network.blocks[0].attention, places, code, network.shape.frequencies())
    _match(network.blocks[1].attention, places, code)
    _copy(network.blocks[1].attention, free[:, : network.shape.head_dim])


def _random_start(network: Network) -> None:
    for name, weight in network.named_parameters():
        if weight.ndim == 2:
            small = 0.1 if name.endswith(("o.weight", "down.weight")) else 1.0
            weight.normal_(0, small * SCALE)  # larger blocks would drown the small embedding
    network.embedding.weight[:, 0] = CONSTANT


def _basis(width: int) -> Tensor:
    """An orthonormal basis of all channels but the constant one, ``(width, width - 1)``."""
    square = torch.linalg.qr(torch.randn(width - 1, width - 1))[0]
    return torch.cat((torch.zeros(1, width - 1), square))


def _look_back(attention: Attention, places: tuple[Tensor, ...], code: Tensor, frequencies: Tensor) -> None:
    """Head h attends h + 1 tokens back and writes that token's code into its own place of the residual stream."""
    size = attention.shape.head_dim
    attention.q_norm.weight.fill_(LOOK_BACK_GAIN)
    attention.k_norm.weight.fill_(LOOK_BACK_GAIN)
    for weight in (attention.q.weight, attention.k.weight, attention.o.weight):
        weight.zero_()
    for kv_head in range(attention.shape.kv_heads):
        attention.k.weight[kv_head * size : kv_head * size + FAST, 0] = 1.0
        attention.v.weight[kv_head * size : kv_head * size + CODE] = code
    for head, place in enumerate(places):
        angles = -(head + 1) * frequencies[:FAST]
        start = head * size
        attention.q.weight[start : start + FAST, 0] = angles.cos()
        attention.q.weight[start + size // 2 : start + size // 2 + FAST, 0] = angles.sin()
        attention.o.weight[:, start : start + CODE] = 0.1 * place


def _match(attention: Attention, places: tuple[Tensor, ...], code: Tensor) -> None:
    """KV head 0 matches one previous token with the current one, KV head 1 the two before with the last two."""
    size, half = attention.shape.head_dim, CODE // 2
    attention.q_norm.weight.fill_(MATCH_GAIN)
    attention.k_norm.weight.fill_(MATCH_GAIN)
    attention.q.weight.zero_()
    attention.k.weight.zero_()
    one, two, three = (place.T for place in places[:3])
    pairs = (code, one), (torch.cat((one[:half], two[:half])), torch.cat((two[:half], three[:half])))
    group = attention.shape.heads // attention.shape.kv_heads
    for kv_head, (query, key) in enumerate(pairs):
        attention.k.weight[_slow(kv_head, size)] = key
        for head in range(kv_head * group, (kv_head + 1) * group):
            attention.q.weight[_slow(head, size)] = query


def _slow(head: int, size: int) -> Tensor:
    """Rows of a head's channels that turn with the ``SLOW`` lowest frequencies, ``(2 * SLOW,)``."""
    first = torch.arange(size // 2 - SLOW, size // 2)
    return head * size + torch.cat((first, first + size // 2))


def _copy(attention: Attention, subspace: Tensor) -> None:
    """All heads pass the attended token's embedding on, within ``subspace`` of shape ``(width, head_dim)``."""
    attention.v.weight.copy_(subspace.T.repeat(attention.shape.kv_heads, 1))
    attention.o.weight.copy_(0.6 / attention.shape.heads * subspace.repeat(1, attention.shape.heads))

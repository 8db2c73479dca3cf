"""A structured start: heads that look back and heads that match, so that training begins behind the phase change.

From a random start this network does not learn to look things up within minutes. Here layer 0 starts with four heads
that read the tokens 1 to 4 places back and store a code of each; layer 1 starts with heads that find the place whose
previous tokens equal the current ones, and copy the token found there. All weights stay free to move afterwards.

A network with biases starts with queries that lean: in layers 1 and up, a constant direction makes up most of each
query, outside the channels that match. TriAttention supposes such queries, and a network without biases has none.
"""

import torch
from torch import Tensor

from models.training.network import Attention, Network, NetworkShape

CODES = 8  # the width divided by this is the number of channels of one token's code
CONSTANT = 0.25  # value of the embedding's channel 0 for all tokens: a bias that q and k can read
SCALE = 0.02  # standard deviation of all that is not set below
LOOK_BACK_GAIN, MATCH_GAIN = 2.5, 2.0
FAST = 8  # number of the highest RoPE frequencies used for looking back
LEAN = 15.0  # energy of a query's constant part, relative to the part that depends on the token
KEY_LEAN = 1.0  # the same of keys, in the slowest channels only


@torch.no_grad()
def initialise(network: Network, seed: int) -> None:
    """Set all weights of ``network`` (4 heads, 2 KV heads) in place."""
    torch.manual_seed(seed)
    random_start(network)
    basis, size = random_basis(network.shape.width), network.shape.width // CODES
    places, free = basis[:, : 4 * size].split(size, 1), basis[:, 4 * size :]
    code = free[:, :size].T
    _look_back(network.blocks[0].attention, places, code, network.shape.frequencies())
    _match(network.blocks[1].attention, places, code)
    _copy(network.blocks[1].attention, free[:, : network.shape.head_dim])
    if network.shape.bias:
        _lean(network)


def random_start(network: Network) -> None:
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 2:
            small = 0.1 if name.endswith(("o.weight", "down.weight")) else 1.0
            weight.normal_(0, small * SCALE)  # larger blocks would drown the small embedding
    network.embedding.weight[:, 0] = CONSTANT


def random_basis(width: int) -> Tensor:
    """An orthonormal basis of all channels but the constant one, ``(width, width - 1)``."""
    square = torch.linalg.qr(torch.randn(width - 1, width - 1))[0]
    return torch.cat((torch.zeros(1, width - 1), square))


def _look_back(attention: Attention, places: tuple[Tensor, ...], code: Tensor, frequencies: Tensor) -> None:
    """Head h attends h + 1 tokens back and writes that token's code into its own place of the residual stream."""
    size, channels = attention.shape.head_dim, len(code)
    attention.q_norm.weight.fill_(LOOK_BACK_GAIN)
    attention.k_norm.weight.fill_(LOOK_BACK_GAIN)
    for weight in (attention.q.weight, attention.k.weight, attention.o.weight):
        weight.zero_()
    for kv_head in range(attention.shape.kv_heads):
        attention.k.weight[kv_head * size : kv_head * size + FAST, 0] = 1.0
        attention.v.weight[kv_head * size : kv_head * size + channels] = code
    for head, place in enumerate(places):
        angles = -(head + 1) * frequencies[:FAST]
        start = head * size
        attention.q.weight[start : start + FAST, 0] = angles.cos()
        attention.q.weight[start + size // 2 : start + size // 2 + FAST, 0] = angles.sin()
        attention.o.weight[:, start : start + channels] = 0.1 * place


def _match(attention: Attention, places: tuple[Tensor, ...], code: Tensor) -> None:
    """KV head 0 matches one previous token with the current one, KV head 1 the two before with the last two."""
    half = len(code) // 2
    attention.q_norm.weight.fill_(MATCH_GAIN)
    attention.k_norm.weight.fill_(MATCH_GAIN)
    attention.q.weight.zero_()
    attention.k.weight.zero_()
    one, two, three = (place.T for place in places[:3])
    pairs = (code, one), (torch.cat((one[:half], two[:half])), torch.cat((two[:half], three[:half])))
    group = attention.shape.heads // attention.shape.kv_heads
    for kv_head, (query, key) in enumerate(pairs):
        attention.k.weight[_matching(attention.shape, kv_head)] = key
        for head in range(kv_head * group, (kv_head + 1) * group):
            attention.q.weight[_matching(attention.shape, head)] = query


def _matching(shape: NetworkShape, head: int) -> Tensor:
    """Rows of a head's channels that turn slowly enough to match far away, ``(width / CODES,)``; biases turn slower."""
    end = shape.head_dim // 2 - (shape.width // CODES // 2 if shape.bias else 0)
    first = torch.arange(end - shape.width // CODES // 2, end)
    return head * shape.head_dim + torch.cat((first, first + shape.head_dim // 2))


def _copy(attention: Attention, subspace: Tensor) -> None:
    """All heads pass the attended token's embedding on, within ``subspace`` of shape ``(width, up to head_dim)``."""
    size, channels = attention.shape.head_dim, subspace.shape[1]
    for kv_head in range(attention.shape.kv_heads):
        attention.v.weight[kv_head * size : kv_head * size + channels] = subspace.T
    for head in range(attention.shape.heads):
        share = 0.6 / attention.shape.heads * subspace
        attention.o.weight[:, head * size : head * size + channels] = share


def _lean(network: Network) -> None:
    """Biases for all layers but the first; the norms' gains make up for what the biases take from the rest."""
    for number, block in enumerate(network.blocks[1:], 1):
        attention, shape = block.attention, network.shape
        rows = torch.arange(shape.head_dim)
        if number == 1:
            rows = rows[~torch.isin(rows, _matching(shape, 0))]
        slowest = shape.head_dim // 2 - shape.width // CODES // 2
        key_rows = rows[rows % (shape.head_dim // 2) >= slowest]
        _lean_one(network, number, "q", rows, LEAN)
        _lean_one(network, number, "k", key_rows, KEY_LEAN)
        attention.q_norm.weight.mul_((1 + LEAN) ** 0.5)
        attention.k_norm.weight.mul_((1 + KEY_LEAN) ** 0.5)


def _lean_one(network: Network, layer: int, name: str, rows: Tensor, ratio: float) -> None:
    """Give each head a bias in its channels ``rows``, with ``ratio`` times the energy of what random tokens cause."""
    projection, size = getattr(network.blocks[layer].attention, name), network.shape.head_dim
    energy = _energy(network, projection)
    for head in range(projection.out_features // size):
        signs = torch.randn(len(rows)).sign()
        projection.bias[head * size + rows] = signs * (ratio * energy[head] / len(rows)) ** 0.5


def _energy(network: Network, projection: torch.nn.Module) -> Tensor:
    """Mean squared length of each head's output of ``projection`` over random tokens, ``(heads,)``."""
    seen: list[Tensor] = []
    hook = projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network(torch.randint(network.shape.vocabulary, (1, 128)), torch.zeros(1, dtype=torch.long))
    hook.remove()
    return seen[0][0].unflatten(-1, (-1, network.shape.head_dim)).square().sum(-1).mean(0)

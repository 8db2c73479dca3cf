"""Summary tokens (Kwai summary attention, arXiv:2604.24432) of a network: their parameters and the pass with them.

After every ``chunk`` text tokens stands one summary. It reads its chunk's text and itself; text reads the last
``window`` chunks and its own as text, and what is older through the summaries. In layers of kind "full" text reads all
text.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.summary.attention import chunk_attention, window_attention
from models.training.attention import CausalAttention
from models.training.network import Attention, Block, Linear, Network, NetworkShape, rotate

KINDS = ("summary", "full")


@dataclass(frozen=True)
class RowLayout:
    """Which layers read summaries, and from how far back; ``window`` counts chunks of ``chunk`` tokens."""

    kinds: tuple[str, ...]
    window: int = 8
    chunk: int = 8
    summaries: bool = True  # False: what is older than the window is lost, the control

    def __post_init__(self) -> None:
        wrong = [kind for kind in self.kinds if kind not in KINDS]
        if wrong or not self.kinds:
            raise ValueError(f"kinds must be one of {KINDS} for each layer, got {list(self.kinds)}")
        for name in ("window", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def unit(self) -> int:
        """Rows must be a multiple of this long."""
        return self.window * self.chunk


class Projections(nn.Module):
    """A layer's own projections for its summary."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.q = Linear(shape.width, shape.heads * shape.head_dim)
        self.k = Linear(shape.width, shape.kv_heads * shape.head_dim)
        self.v = Linear(shape.width, shape.kv_heads * shape.head_dim)


class SummaryRows(nn.Module):
    """All summary parameters of a network, started from its own: projections copied, embedding their mean."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        weight = network.embedding.weight.detach().float()
        self.embedding = nn.Parameter(weight.mean(0, keepdim=True))
        self.layers = nn.ModuleList(Projections(network.shape) for _ in network.blocks)
        for own, block in zip(self.layers, network.blocks, strict=True):
            for name in ("q", "k", "v"):
                getattr(own, name).weight.data.copy_(getattr(block.attention, name).weight.detach())

    def tensors(self) -> dict[str, Tensor]:
        """By the names of a summary file."""
        found = {"embedding": self.embedding.detach()}
        for number, own in enumerate(self.layers):
            found |= {f"layers.{number}.{name}_proj": getattr(own, name).weight.detach() for name in ("q", "k", "v")}
        return found

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Replace all parameters by those of a summary file."""
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])


class TrainingOutcome(NamedTuple):
    """``hidden`` ``(rows, tokens, width)``, before the last norm; ``mixed`` each layer's attention output on text."""

    hidden: Tensor
    mixed: list[Tensor]


def read(
    network: Network, own: SummaryRows | None, ids: Tensor, layout: RowLayout | None, dtype: torch.dtype
) -> TrainingOutcome:
    """One pass over ``ids`` of shape ``(rows, tokens)``; without a layout the plain network."""
    rows, tokens = ids.shape
    x, mixed = network.embedding(ids).to(dtype), []
    turn = network.turn(tokens, dtype)
    if own is None or layout is None:
        for block in network.blocks:
            x, attended = _plain(block, x, turn)
            mixed.append(attended)
        return TrainingOutcome(x, mixed)
    s = own.embedding.to(dtype).expand(rows, tokens // layout.chunk, -1)
    for number, (block, projections, kind) in enumerate(zip(network.blocks, own.layers, layout.kinds, strict=True)):
        last = number == len(layout.kinds) - 1
        x, s, attended = _layer(block, projections, x, s, turn, kind, layout, last)
        mixed.append(attended)
    return TrainingOutcome(x, mixed)


def _plain(block: Block, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    attended = block.attention(block.attention_norm(x), turn)
    x = x + attended
    return x + block.feed(x), attended


def _layer(
    block: Block,
    own: Projections,
    x: Tensor,
    s: Tensor,
    turn: tuple[Tensor, Tensor],
    kind: str,
    layout: RowLayout,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Text and summaries behind the layer, and text's attention output; nobody reads the last layer's summaries."""
    attention = block.attention
    turn_s = tuple(part[layout.chunk - 1 :: layout.chunk] for part in turn)
    q, k, v = _projected(attention, attention, block.attention_norm(x), turn)
    q_s, k_s, v_s = _projected(attention, own, block.attention_norm(s), turn_s)
    if kind == "full":
        group = q.shape[1] // k.shape[1]
        mixed = CausalAttention.apply(q, *(part.repeat_interleave(group, 1) for part in (k, v)))
    else:
        mixed = window_attention(q, k, v, (k_s, v_s) if layout.summaries else None, layout.window, layout.chunk)
    attended = attention.o(mixed.transpose(1, 2).flatten(2))
    x = x + attended
    x = x + block.feed(x)
    if last or not layout.summaries:
        return x, s, attended
    s = s + attention.o(chunk_attention(q_s, k, v, k_s, v_s).transpose(1, 2).flatten(2))
    return x, s + block.feed(s), attended


def _projected(attention: Attention, by: nn.Module, y: Tensor, turn) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values ``(rows, heads, tokens, head_dim)``, the first two turned, by the projections of ``by``."""
    q, k, v = (project(y).unflatten(-1, (-1, attention.shape.head_dim)) for project in (by.q, by.k, by.v))
    q, k = rotate(attention.q_norm(q), turn), rotate(attention.k_norm(k), turn)
    return tuple(part.transpose(1, 2) for part in (q, k, v))


def kinds_of(pattern: str, layers: int) -> tuple[str, ...]:
    """``"s"`` and ``"f"`` for each layer, repeated to ``layers``: ``"sfss"`` has one full layer in four."""
    named = {"s": "summary", "f": "full"}
    if not pattern or set(pattern) - set(named) or layers % len(pattern):
        raise ValueError(f"layers must be a pattern of s (summary) and f (full) that divides {layers}, got {pattern!r}")
    return tuple(named[letter] for letter in pattern * (layers // len(pattern)))

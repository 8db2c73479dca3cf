"""A plain PyTorch Qwen3: the module that is trained. The shipped weights load in stock transformers and vLLM."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training.attention import CausalAttention


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of the network; a head has ``head_dim`` channels, in two halves that RoPE turns against each other."""

    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    hidden: int = 640
    theta: float = 4e6
    max_positions: int = 8192
    epsilon: float = 1e-6
    bias: bool = False  # whether queries and keys have a bias, in front of their norm

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads={self.kv_heads}, got {self.heads}")

    def frequencies(self) -> Tensor:
        """RoPE frequencies in radians per token, highest first, ``(head_dim / 2,)``."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        return (self.theta**-exponents).float()


class Normalise(torch.autograd.Function):
    """RMS norm in float32 with a backward pass of few operations: on a CPU autograd's own takes a sixth of a step."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale * weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        grad, unit = grad.float(), x.float() * scale
        product = (grad * unit).flatten(0, -2)
        weight_grad = product.new_ones(1, len(product)) @ product  # faster than a sum over rows
        inner = (product @ weight[:, None]).view(scale.shape) / x.shape[-1]
        return ((grad * weight - unit * inner) * scale).to(x.dtype), weight_grad[0], None


class Norm(nn.Module):
    """RMS norm over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return Normalise.apply(x, self.weight.float(), self.epsilon)


class Linear(nn.Linear):
    """A projection whose float32 weights are cast to the type of its input."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Attention(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.q = Linear(shape.width, shape.heads * shape.head_dim, shape.bias)
        self.k = Linear(shape.width, shape.kv_heads * shape.head_dim, shape.bias)
        self.v = Linear(shape.width, shape.kv_heads * shape.head_dim)
        self.o = Linear(shape.heads * shape.head_dim, shape.width)
        self.q_norm = Norm(shape.head_dim, shape.epsilon)
        self.k_norm = Norm(shape.head_dim, shape.epsilon)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """``x`` is ``(rows, tokens, width)``; ``turn`` holds cosines and sines, ``(tokens, 1, head_dim)`` each."""
        q, k, v = (self._split(project(x)) for project in (self.q, self.k, self.v))
        q, k = rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn)
        group = self.shape.heads // self.shape.kv_heads
        q, k, v = q.transpose(1, 2), _spread(k, group), _spread(v, group)
        mixed = CausalAttention.apply(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """``(rows, tokens, heads * head_dim)`` to ``(rows, tokens, heads, head_dim)``."""
        return x.unflatten(-1, (-1, self.shape.head_dim))


class Block(nn.Module):
    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.width, shape.epsilon)
        self.attention = Attention(shape)
        self.mlp_norm = Norm(shape.width, shape.epsilon)
        self.gate = Linear(shape.width, shape.hidden)
        self.up = Linear(shape.width, shape.hidden)
        self.down = Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn)
        return x + self.feed(x)

    def feed(self, x: Tensor) -> Tensor:
        """What the MLP adds to ``x``."""
        y = self.mlp_norm(x)
        return self.down(F.silu(self.gate(y)) * self.up(y))


class Network(nn.Module):
    """Token ids to logits; unless it is not ``tied``, the output embedding is that of the input."""

    def __init__(self, shape: NetworkShape, tied: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width, shape.epsilon)
        self.head = None if tied else Linear(shape.width, shape.vocabulary)

    def forward(self, ids: Tensor, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits ``(selected, vocabulary)`` at ``positions``, flat indices into ``ids`` of shape ``(rows, tokens)``."""
        x = self.embedding(ids).to(dtype)
        turn = self.turn(ids.shape[1], dtype)
        for block in self.blocks:
            x = block(x, turn)
        return self.predict(x, positions)

    def predict(self, x: Tensor, positions: Tensor) -> Tensor:
        """Logits ``(selected, vocabulary)`` of what the last block returned, at flat ``positions``."""
        chosen = self.norm(x).flatten(0, 1)[positions]
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(chosen, weight.to(x.dtype)).float()

    def turn(self, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of RoPE at positions 0 to ``tokens``, ``(tokens, 1, head_dim)`` each."""
        angles = torch.outer(torch.arange(tokens).float(), self.shape.frequencies()).repeat(1, 2)
        return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def _spread(x: Tensor, group: int) -> Tensor:
    """``(rows, tokens, kv_heads, head_dim)`` to ``(rows, kv_heads * group, tokens, head_dim)``, each head repeated."""
    rows, tokens, heads, size = x.shape
    x = x.transpose(1, 2)[:, :, None].expand(rows, heads, group, tokens, size)
    return x.reshape(rows, heads * group, tokens, size)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE: the pair ``(x[i], x[i + head_dim / 2])`` turns by position times frequency ``i``."""
    first, second = x.chunk(2, -1)
    cosine, sine = turn
    return x * cosine + torch.cat((-second, first), -1) * sine

"""A plain PyTorch Qwen3: the module that is trained. The shipped weights load in stock transformers and vLLM."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
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

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads={self.kv_heads}, got {self.heads}")

    def frequencies(self) -> Tensor:
        """RoPE frequencies in radians per token, highest first, ``(head_dim / 2,)``."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        return (self.theta**-exponents).float()


class Norm(nn.Module):
    """RMS norm over the last axis, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * self.weight).to(x.dtype)


class Linear(nn.Linear):
    """A bias-free projection whose float32 weight is cast to the type of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = Linear(shape.width, shape.heads * shape.head_dim)
        self.k = Linear(shape.width, shape.kv_heads * shape.head_dim)
        self.v = Linear(shape.width, shape.kv_heads * shape.head_dim)
        self.o = Linear(shape.heads * shape.head_dim, shape.width)
        self.q_norm = Norm(shape.head_dim, shape.epsilon)
        self.k_norm = Norm(shape.head_dim, shape.epsilon)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """``x`` is ``(rows, tokens, width)``; ``turn`` holds cosines and sines, ``(tokens, head_dim)`` each."""
        q = rotate(self.q_norm(self._split(self.q(x))), turn)
        k = rotate(self.k_norm(self._split(self.k(x))), turn)
        group = self.shape.heads // self.shape.kv_heads
        k, v = (t.repeat_interleave(group, 1) for t in (k, self._split(self.v(x))))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """``(rows, tokens, heads * head_dim)`` to ``(rows, heads, tokens, head_dim)``."""
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = Norm(shape.width, shape.epsilon)
        self.attention = Attention(shape)
        self.mlp_norm = Norm(shape.width, shape.epsilon)
        self.gate = Linear(shape.width, shape.hidden)
        self.up = Linear(shape.width, shape.hidden)
        self.down = Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Network(nn.Module):
    """Token ids to logits; input and output embeddings are tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width, shape.epsilon)

    def forward(self, ids: Tensor, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits ``(selected, vocabulary)`` at ``positions``, flat indices into ``ids`` of shape ``(rows, tokens)``."""
        x = self.embedding(ids).to(dtype)
        turn = self._turn(ids.shape[1], dtype)
        for block in self.blocks:
            x = block(x, turn)
        chosen = self.norm(x).flatten(0, 1)[positions]
        return F.linear(chosen, self.embedding.weight.to(dtype)).float()

    def _turn(self, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(tokens).float(), self.shape.frequencies()).repeat(1, 2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE: the pair ``(x[i], x[i + head_dim / 2])`` turns by position times frequency ``i``."""
    first, second = x.chunk(2, -1)
    cosine, sine = turn
    return x * cosine + torch.cat((-second, first), -1) * sine

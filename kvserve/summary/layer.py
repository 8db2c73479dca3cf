"""One decoder layer as summary tokens pass it: their own projections, everything else shared with text (KSA)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvserve.evidence.observer import Layer
from kvserve.startup.guard import UnsupportedError


@dataclass(frozen=True)
class SummaryLayer:
    """A decoder layer of the served model, with this worker's rows of the summary projections.

    Shapes: r summary rows, d hidden size, Hq query and H KV heads (local) of D channels, C text tokens in a chunk.
    """

    layer: Layer
    block: Any  # vLLM's decoder layer, in the way of Qwen3's
    weights: tuple[Tensor, Tensor, Tensor]  # of queries, keys, values
    mix: float = 1.0  # their share beside the text's own projections, behind the norms

    def project(self, normed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed hidden states (r, d) -> queries (r, Hq, D), keys and values (r, H, D), rotated to `positions` (r,)."""
        attention = self.block.self_attn
        q, k, v = self._normed(F.linear(normed, weight) for weight in self.weights)
        if self.mix != 1:
            sizes = [attention.q_size, attention.kv_size, attention.kv_size]
            text = self._normed(attention.qkv_proj(normed)[0].split(sizes, dim=-1))
            q, k, v = (self.mix * own + (1 - self.mix) * base for own, base in zip((q, k, v), text, strict=True))
        q, k = attention.rotary_emb(positions, q.flatten(1), k.flatten(1))
        return tuple(part.view(len(normed), -1, attention.head_dim) for part in (q, k, v))  # type: ignore[return-value]

    def _normed(self, parts: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Projected queries, keys and values by head, (r, heads, D), the first two behind their norms."""
        attention = self.block.self_attn
        q, k, v = (part.reshape(len(part), -1, attention.head_dim) for part in parts)
        return attention.q_norm(q.contiguous()), attention.k_norm(k.contiguous()), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of each row on its chunk's text, keys and values (r, H, C, D), and on itself: (r, Hq, D)."""
        keys = torch.cat([keys, k[:, :, None].to(keys.dtype)], dim=2)
        values = torch.cat([values, v[:, :, None].to(values.dtype)], dim=2)
        q = q[:, :, None].to(keys.dtype)
        seen = F.scaled_dot_product_attention(q, keys, values, scale=self.layer.softmax.scale, enable_gqa=True)
        return seen[:, :, 0]

    def out(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """What attention has made of the rows, (r, Hq, D), as hidden states (r, d)."""
        return self.block.self_attn.o_proj(seen.flatten(1).to(dtype))[0]  # type: ignore[no-any-return]


def layers_of(
    tensors: Mapping[str, Tensor],
    mix: float,
    blocks: list[Any],
    layers: Sequence[Layer],
    head_offset: int,
    device: torch.device,
) -> list[SummaryLayer]:
    """All decoder layers of a model, from a summary file's tensors. Raises UnsupportedError.

    head_offset: this worker's first KV head.
    """
    made = []
    for layer, block in zip(layers, blocks, strict=True):
        attention = block.self_attn
        if not hasattr(attention, "q_norm") or attention.qkv_proj.bias is not None:
            raise UnsupportedError(
                f"summary tokens: layers of this model ({type(block).__name__}) are not like Qwen3's, with norms of "
                "queries and keys and without biases"
            )
        group, size = attention.num_heads // attention.num_kv_heads, attention.head_dim
        own_rows = {
            "q_proj": slice(head_offset * group * size, (head_offset * group + attention.num_heads) * size),
            "k_proj": slice(head_offset * size, (head_offset + attention.num_kv_heads) * size),
        }
        own_rows["v_proj"] = own_rows["k_proj"]
        q, k, v = (
            tensors[f"layers.{layer.index}.{name}"][rows].to(device).contiguous() for name, rows in own_rows.items()
        )
        made.append(SummaryLayer(layer, block, (q, k, v), mix))
    return made

"""A layer over a cache of its own, for tests of what looks at layers."""

import torch

from kvserve.cache.contents import LayerCache, gpu_cache
from kvserve.evidence.observer import Layer
from kvserve.policy.softmax import Softmax

BLOCK = 16


def plain_cache(blocks: int, heads: int, head_size: int) -> LayerCache:
    return gpu_cache(torch.zeros(blocks, heads, BLOCK, 2 * head_size), head_size, (1.0, 1.0), None)


def layer(index: int, cache: LayerCache | None = None, heads: int = 2, scale: float = 0.3, rope=None) -> Layer:
    return Layer(index, 0, cache or plain_cache(1, heads, 8), heads, Softmax(scale), rope)

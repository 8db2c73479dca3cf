"""Moving the tokens that stay to the slots that they get: on CUDA by a Triton kernel, unless some were merged."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from torch import Tensor

from kvserve.cache.contents import LayerCache, take

if TYPE_CHECKING:  # the kernels and their bench need torch and Triton only
    from kvserve.policy import Merged


def move(
    cache: LayerCache, src: Tensor, dst: Tensor, choice: Merged, read: dict[str, Tensor], apart: bool = False
) -> None:
    """From blocks `src` to blocks `dst` (b,) of one layer, of each head what `choice` says.

    read: contents of `src` that have been read already, as stored, by "keys" and "values"; emptied.
    apart: whether no block is in both `src` and `dst`.
    """
    if src.is_cuda and choice.keys is None and choice.values is None:
        from kvserve.cache.moving_triton import move as on_gpu

        on_gpu(cache, src, dst, choice.slots, apart)
        read.clear()
    else:
        _by_torch(cache, src, dst, choice, read)


def _by_torch(cache: LayerCache, src: Tensor, dst: Tensor, choice: Merged, read: dict[str, Tensor]) -> None:
    skip = _undisturbed(cache, src, dst, choice)
    slots = choice.slots[:, skip * cache.keys.block_size :]
    # All is picked before any is written: source and destination blocks overlap.
    picked = {}
    for name, tokens in cache._asdict().items():
        made = getattr(choice, name)
        if made is not None and choice.first is None:
            picked[name] = tokens.encode(made)
            continue
        picked[name] = take(read[name], slots) if name in read else tokens.pick(src, slots)
        if made is not None:
            first = choice.first - skip * tokens.block_size
            picked[name].narrow(1, first, made.shape[1]).copy_(tokens.encode(made))
    for name, tokens in cache._asdict().items():
        tokens.write(dst[skip:], picked[name])
    read.clear()


def _undisturbed(cache: LayerCache, src: Tensor, dst: Tensor, choice: Merged) -> int:
    """Blocks at the beginning that stay where and as they are."""
    if choice.first is None:
        return 0
    same = takewhile(lambda pair: pair[0] == pair[1], zip(src.tolist(), dst.tolist(), strict=False))
    return min(choice.first // cache.keys.block_size, len(list(same)))

"""The Triton kernels against torch on the same device: slots bit by bit, attention mass against float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.kernel_cases import ORDERS, Move, PlainSoftmax, by_torch, kept, paged
from kvserve.cache.contents import Tokens
from kvserve.cache.moving_triton import move
from kvserve.evidence.mass_triton import column_sums

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}
TOLERANCE = 2e-4  # of 1 + the mass that a slot received


class Wrong(Exception):
    """A kernel's result is not torch's."""


def check(device: str) -> Iterator[str]:
    """One line for each check that passed. Raises Wrong with the name of one that did not, and by how much."""
    torch.manual_seed(0)
    for order in ORDERS:
        for name, dtype in DTYPES.items():
            for width in (64, 128) if device == "cpu" else (64, 80, 128, 256):
                yield _moved(order, f"{name} x {width}", dtype, width, device)
        yield _moved(order, "packed 4 bits with scales, 68 bytes", torch.uint8, 68, device)
        yield _moved(order, "packed, 67 bytes", torch.uint8, 67, device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for width in (64, 128) if device == "cpu" else (64, 256) if dtype == torch.float32 else (64, 80, 128, 256):
            yield _summed(dtype, width, device)


def _moved(order: str, name: str, dtype: torch.dtype, width: int, device: str) -> str:
    src, other = torch.randperm(24, device=device).view(2, 12)
    slots = kept(3, 180, 70, device)
    for how, dst in {"in place": src[:5], "shuffled": src[torch.tensor([7, 0, 3, 11, 1])], "apart": other[:5]}.items():
        found = paged(24, 3, 16, width, dtype, ORDERS[order], device)
        wanted = found._replace(**{which: _copied(tokens) for which, tokens in found._asdict().items()})
        move(found, src, dst, slots, apart=how == "apart")
        by_torch(wanted, Move(src, dst, slots))
        for which, tokens in found._asdict().items():
            differ = _bytes(tokens.view) != _bytes(getattr(wanted, which).view)
            if differ.any():
                raise Wrong(f"mover, {order}, {name}, {how}: {int(differ.sum())} bytes of the {which} differ")
    return f"mover, {order}, {name}: equal"


def _copied(tokens: Tokens) -> Tokens:
    return Tokens(tokens.view.clone())


def _bytes(view: Tensor) -> Tensor:
    return view.contiguous().flatten().view(torch.uint8)


def _summed(dtype: torch.dtype, width: int, device: str) -> str:
    worst = 0.0
    sinks = torch.linspace(-2, 5, 8, device=device)
    for group, every, softmax in (
        (1, 1, PlainSoftmax(0.1)),
        (4, 3, PlainSoftmax(0.1, 5.0)),
        (8, 1, PlainSoftmax(0.1, 0.0, sinks)),
    ):
        heads, slots = 8 // group, 331
        keys = torch.randn(heads, slots, width, device=device).to(dtype)
        queries = torch.randn(300, 8, width, device=device).to(dtype)[::every]
        found = column_sums(queries, keys, softmax, 31, every)
        wanted = matrix(queries, keys, softmax, 31, every)
        worst = max(worst, float(((found - wanted).abs() / (1 + wanted)).max()))
        if not worst <= TOLERANCE:
            raise Wrong(f"mass, {dtype}, heads of {width}, {group} query heads each, every {every}: off by {worst:.3g}")
    return f"mass, {dtype}, heads of {width}: off by {worst:.2g} at most"


def matrix(queries: Tensor, keys: Tensor, softmax: PlainSoftmax, first: int, stride: int) -> Tensor:
    """The sums of the whole matrix of attention, in float64: as `column_sums`."""
    heads, slots, _ = keys.shape
    by_head = queries.double().unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # (H, G, W, D)
    logits = softmax.logits(by_head @ keys.double()[:, None].transpose(2, 3))
    seen = first + stride * torch.arange(len(queries), device=keys.device)
    logits.masked_fill_(torch.arange(slots, device=keys.device) > seen[:, None], float("-inf"))
    if softmax.sinks is not None:
        sinks = softmax.sinks.double().view(heads, -1, 1, 1).expand(*logits.shape[:3], 1)
        return torch.cat([logits, sinks], -1).softmax(-1)[..., :-1].sum(2)
    return logits.softmax(-1).sum(2)

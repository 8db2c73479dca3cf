"""Tensors on a device that is not there: they refuse to meet tensors of the CPU, as those of a GPU do.

A policy that was only ever run on a CPU often makes a tensor without `device=`, and fails on a GPU. In `elsewhere()`
that shows on any machine: what `place` returns says that it lies on the device `meta`, as does what is made from it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
MIXING = (aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default)
"""Operations that take tensors of two devices on a GPU too: copies, and an index from the CPU."""


class _Placed(Tensor):
    """A CPU tensor, `inner`, that says that it lies on DEVICE."""

    inner: Any
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "_Placed":
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError("a tensor of elsewhere() outside of it")

    def tolist(self) -> Any:
        return self.inner.tolist()


class _Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        placed = [each for each in tensors if isinstance(each, _Placed)]
        if placed and func not in MIXING and any(each.dim() for each in tensors if not isinstance(each, _Placed)):
            raise RuntimeError(f"{func} is given tensors of the view's device and of the CPU")
        there = bool(placed)
        if (device := kwargs.get("device")) is not None:
            there, kwargs["device"] = torch.device(device) == DEVICE, torch.device("cpu")
        if there and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func} on the view's device is given a generator of the CPU")
        result = func(*tree_map(_taken, args), **tree_map(_taken, kwargs))
        return tree_map(lambda each: _Placed(each) if there and isinstance(each, Tensor) else each, result)


def _taken(value: Any) -> Any:
    return value.inner if isinstance(value, _Placed) else value


def place(tensor: Tensor) -> Tensor:
    """This CPU tensor, as if it lay on DEVICE. Only inside `elsewhere`."""
    return _Placed(tensor)


def is_placed(tensor: Tensor) -> bool:
    return isinstance(tensor, _Placed)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Let placed tensors be used inside."""
    with _Elsewhere():
        yield

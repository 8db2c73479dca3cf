"""The device that Triton believes to have: this CPU."""

import time
from collections.abc import Callable
from typing import Any

import torch
from triton._C.libtriton import interpreter
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class CPUDriver(DriverBase):
    """Always there, with one stream."""

    def __init__(self) -> None:
        self.utils = None

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        """There is one."""

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def milliseconds(run: Callable[[], Any], *args: Any, **kwargs: Any) -> list[float]:
            started = time.perf_counter()
            run()
            return [(time.perf_counter() - started) * 1e3] * 3

        return milliseconds


def _with_bits(stock: Callable[..., Any], place: int) -> Callable[..., Any]:
    """A memory access whose mask, the argument at `place`, may consist of wider numbers than bits.

    `&` of a scalar and a block makes such masks (vLLM's n-grams do that), and the interpreter refuses them.
    """

    def access(*args: Any) -> Any:
        return stock(*args[:place], args[place].astype(bool), *args[place + 1 :])

    return access


interpreter.load = _with_bits(interpreter.load, 1)
interpreter.store = _with_bits(interpreter.store, 2)

"""What the workers of a tensor-parallel group say to each other while one request's policy runs on all of them.

A policy may fail on one worker only, between two means that all of them must take part in. So each mean, and the end,
begins with a meeting at which every worker says where it is. If one has failed, or they are not at the same place, all
of them hear why and give the request up, and none waits for one that will not come.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from kvserve.policy.errors import said


class Apart(Exception):
    """The workers do not go on together; the message is that of the one which failed."""


class _At(IntEnum):
    END = 0
    MEAN = 1
    FAILED = 2


class Agreement:
    """One worker's side of it; without other workers there is nothing to say."""

    def __init__(self) -> None:
        self._over: Apart | None = Apart("a mean over the workers can be had only while the policy is asked")

    def reached(self, work: Callable[[], None]) -> Exception | None:
        """Do `work`, as all workers do; None if it went well on all of them, else why not, on all of them."""
        outside, self._over = self._over, None
        try:
            work()
            self._meet(_At.END)
        except Exception as error:
            return self._given_up(error)
        finally:
            self._over = outside
        return None

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the workers among which tensor parallelism splits the heads; all of them must call it."""
        if (workers := _workers()) is None:
            return values
        from vllm.distributed import tensor_model_parallel_all_reduce

        values = values.contiguous()
        self._meet(_At.MEAN, values.numel() * values.element_size())
        return tensor_model_parallel_all_reduce(values) / workers.world_size

    def _given_up(self, error: Exception) -> Exception:
        """What all workers take for the cause."""
        if self._over is not None:
            return self._over  # of which the policy may have made another error
        try:
            self._meet(_At.FAILED, why=said(error))
        except Apart as apart:
            return apart
        return error

    def _meet(self, at: _At, size: int = 0, why: str | None = None) -> None:
        """Raises Apart unless all workers are `at` the same place, with as many bytes, and none has failed."""
        if (workers := _workers()) is None:
            return
        if self._over is not None:
            raise self._over
        here = torch.tensor([at, -at, size, -size])
        highest = here.clone()
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX, group=workers.cpu_group)
        if at is _At.FAILED or not torch.equal(here, highest):
            self._over = Apart(_first(why, workers) or "it does not ask for the same means on all workers")
            raise self._over


def _first(why: str | None, workers: Any) -> str | None:
    """The word of the first worker that has one."""
    words: list[str | None] = [None] * workers.world_size
    torch.distributed.all_gather_object(words, why, group=workers.cpu_group)
    return next((word for word in words if word), None)


def _workers() -> Any:
    """vLLM's tensor-parallel group; None for a worker alone."""
    from vllm.distributed import get_tp_group, model_parallel_is_initialized

    if not model_parallel_is_initialized() or get_tp_group().world_size == 1:
        return None
    return get_tp_group()

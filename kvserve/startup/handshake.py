"""How API processes learn the facts of their engines: in the message with which vLLM's engine says that it is up."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import msgspec
from vllm.v1.engine import EngineCoreReadyResponse
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import MPClient

from kvserve.policy.types import Facts
from kvserve.startup.facts import keep
from kvserve.startup.guard import UnsupportedError
from kvserve.startup.options import switched_on


@dataclass
class ReadyResponse(EngineCoreReadyResponse):
    """vLLM's message with one more field, which a client without kvserve skips."""

    kv_facts: Facts | None = None


class _Carried(msgspec.Struct):
    """What we read of the message."""

    kv_facts: Facts | None = None


def install() -> None:
    """Wrap both ends in this process, once."""
    if hasattr(EngineCoreProc._make_ready_response, "kv_wrapped"):
        return
    EngineCoreProc._make_ready_response = _saying(EngineCoreProc._make_ready_response)
    MPClient._apply_ready_response = _hearing(MPClient._apply_ready_response)


def _saying(make: Callable[[Any], EngineCoreReadyResponse]) -> Callable[[Any], EngineCoreReadyResponse]:
    @functools.wraps(make)
    def made(self: Any) -> EngineCoreReadyResponse:
        stock = make(self)
        if not switched_on(self.vllm_config):
            return stock
        values = {field.name: getattr(stock, field.name) for field in fields(stock)}
        return ReadyResponse(**values, kv_facts=self.scheduler.kv.facts)

    made.kv_wrapped = True  # type: ignore[attr-defined]
    return made


def _hearing(apply: Callable[[Any, bytes], None]) -> Callable[[Any, bytes], None]:
    @functools.wraps(apply)
    def applied(self: Any, payload: bytes) -> None:
        apply(self, payload)
        if not switched_on(self.vllm_config):
            return
        said = msgspec.msgpack.decode(payload, type=_Carried).kv_facts if payload else None
        if said is None:
            raise UnsupportedError("an engine of this server did not say what it can hold; is kvserve installed there?")
        keep(self.vllm_config, said)

    return applied

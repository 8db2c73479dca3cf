"""How API processes learn the facts of their engines: in the message with which vLLM's engine says that it is up.

And what they may ask of an engine later, as vLLM's utility calls: to drop a shared compressed prefix.
"""

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreReadyResponse
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.engine.core_client import MPClient

from kvserve.channels import facts_in, with_facts
from kvserve.startup.facts import keep
from kvserve.startup.guard import UnsupportedError
from kvserve.startup.options import switched_on


def install() -> None:
    """Wrap both ends in this process, once."""
    if hasattr(EngineCoreProc._make_ready_response, "kv_wrapped"):
        return
    EngineCoreProc._make_ready_response = _saying(EngineCoreProc._make_ready_response)
    EngineCore.kv_drop_prefix = lambda self, prefix_id: self.scheduler.kv_prefixes.drop(prefix_id)
    MPClient._apply_ready_response = _hearing(MPClient._apply_ready_response)


def _saying(make: Callable[[Any], EngineCoreReadyResponse]) -> Callable[[Any], EngineCoreReadyResponse]:
    @functools.wraps(make)
    def made(self: Any) -> EngineCoreReadyResponse:
        stock = make(self)
        on = switched_on(self.vllm_config)
        return with_facts(stock, self.scheduler.kv.facts) if on else stock

    made.kv_wrapped = True  # type: ignore[attr-defined]
    return made


def _hearing(apply: Callable[[Any, bytes], None]) -> Callable[[Any, bytes], None]:
    @functools.wraps(apply)
    def applied(self: Any, payload: bytes) -> None:
        apply(self, payload)
        if not switched_on(self.vllm_config):
            return
        if (said := facts_in(payload)) is None:
            raise UnsupportedError("an engine of this server did not say what it can hold; is kvserve installed there?")
        keep(self.vllm_config, said)

    return applied

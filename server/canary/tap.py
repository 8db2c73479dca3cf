"""What a canary hears from vLLM's engine client: which requests come and end, and what the engine answers to a replay.

vLLM's OutputProcessor does not know replays, and ignores outputs of requests that it does not know.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from kvserve.channels import Asked
from server.canary import replay as replays
from server.canary.adapters import Adapters
from server.canary.canary import Canary
from server.canary.replay import Replay

logger = logging.getLogger(__name__)


class ClientEngine:
    """vLLM's AsyncLLM, as a canary sees it."""

    def __init__(self, engine_client: Any, adapters: Adapters) -> None:
        self._processor = engine_client.output_processor
        self._adapters = adapters
        self._core = engine_client.engine_core
        self._add: Callable[[Any], Awaitable[None]] = self._core.add_request_async  # before the tap

    def busy(self) -> bool:
        return bool(self._processor.request_states)

    def can(self, replay: Replay) -> bool:
        return self._adapters.hold(replay.request.lora_request)

    async def send(self, replay: Replay) -> None:
        await self._add(replay.request)

    async def abort(self, replay: Replay) -> None:
        await self._core.abort_requests_async([replay.request.request_id])


class Tap:
    """Wraps three methods of one engine client. Its own errors are logged and do not reach the requests."""

    def __init__(self, engine_client: Any, canary: Canary) -> None:
        self._config = engine_client.vllm_config
        self._processor = engine_client.output_processor
        self._canary = canary
        self._requests: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by vLLM's state of a compressed request
        core = engine_client.engine_core
        core.add_request_async = self._adding(core.add_request_async)
        self._processor._finish_request = self._finishing(self._processor._finish_request)
        self._processor.process_outputs = self._processing(self._processor.process_outputs)

    def _adding(self, add: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """Every client's request on its way to the engine; the abort of a replay is sent before it."""

        async def add_request_async(request: Any) -> None:
            await self._canary.arrived()
            state = self._processor.request_states.get(request.request_id)
            if state is not None and Asked.of(request.sampling_params).policy is not None:
                self._requests[state] = request
            await add(request)

        return add_request_async

    def _finishing(self, finish: Callable[[Any], None]) -> Callable[[Any], None]:
        """Requests that end by themselves; not those that a client gives up."""

        def finish_request(req_state: Any) -> None:
            finish(req_state)
            self._canary.ended()
            try:
                self._ended(req_state)
            except Exception:  # an error here would end every request of the server
                logger.exception("kvserve: a request could not be put aside for the canary")

        return finish_request

    def _processing(self, process: Callable[..., Any]) -> Callable[..., Any]:
        def process_outputs(engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
            for output in engine_core_outputs:
                self._canary.answered(output)
            return process(engine_core_outputs, *args, **kwargs)

        return process_outputs

    def _ended(self, state: Any) -> None:
        request = self._requests.pop(state, None)
        if request is None or not Asked.of(request.sampling_params).compresses:
            return
        if not self._canary.chooses():
            return
        generated = list(state.detokenizer.output_token_ids)
        reason = replays.unfit(request, generated, self._config)
        if reason is not None:
            self._canary.skip(reason)
        else:
            self._canary.keep(replays.replay_of(request, generated, self._config))


async def started(engine_client: Any, canary: Canary) -> asyncio.Task[None]:
    """The canary's life, begun when the engine has had its kind of request; called before the server listens."""
    for replay in replays.warm_ups(engine_client.vllm_config):
        await canary.ask(replay)
    return asyncio.create_task(canary.run())

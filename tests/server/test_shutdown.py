"""When the engine is gone, what it left unfinished ends; the whole of it is in tests/clients/test_shutdown.py."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from server.http.shutdown import GRACE_SECONDS, Stopping, watch


class StoppedEngine:
    """Stands in for vLLM's AsyncLLM."""

    def __init__(self, failing: bool = False) -> None:
        self.failing = failing
        self.timeouts: list[float | None] = []
        self.errors: list[Exception] = []
        self.output_processor = SimpleNamespace(propagate_error=self.errors.append)

    def shutdown(self, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)
        if self.failing:
            raise RuntimeError("the engine does not answer")


def _state(grace: int | None = None) -> Any:
    return SimpleNamespace(server=SimpleNamespace(config=SimpleNamespace(timeout_graceful_shutdown=grace)))


async def _shut_down(engine: StoppedEngine, state: Any, **how: Any) -> None:
    """As vLLM does it: from a thread."""
    watch(engine, state)
    try:
        await asyncio.get_running_loop().run_in_executor(None, lambda: engine.shutdown(**how))
    finally:
        await asyncio.sleep(0)


def test_requests_get_their_end_after_the_engine_has_had_its_time() -> None:
    engine, state = StoppedEngine(), _state()
    asyncio.run(_shut_down(engine, state, timeout=7))
    assert engine.timeouts == [7]
    assert [type(error) for error in engine.errors] == [Stopping]
    assert state.server.config.timeout_graceful_shutdown == GRACE_SECONDS


def test_also_when_the_engine_fails_to_stop() -> None:
    engine = StoppedEngine(failing=True)
    with pytest.raises(RuntimeError):
        asyncio.run(_shut_down(engine, _state()))
    assert len(engine.errors) == 1


def test_a_time_that_someone_set_stays_and_no_server_is_no_error() -> None:
    state = _state(grace=60)
    asyncio.run(_shut_down(StoppedEngine(), state))
    assert state.server.config.timeout_graceful_shutdown == 60
    asyncio.run(_shut_down(StoppedEngine(), SimpleNamespace()))


def test_a_second_shutdown_when_all_is_over() -> None:
    engine = StoppedEngine()
    asyncio.run(_shut_down(engine, _state()))
    engine.shutdown()  # the loop is closed
    assert engine.timeouts == [None, None]


def test_clients_are_told_to_try_elsewhere() -> None:
    error = create_error_response(Stopping()).error
    assert error.code == Stopping().status_code == 503
    assert "shutting down" in error.message

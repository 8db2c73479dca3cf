"""The end of the server: requests that are still being answered get an error, however the engine stopped.

On SIGTERM vLLM stops the engine first, at once or after --shutdown-timeout, and then waits for all open
connections. A stream without a last output would then wait for ever, and so would the server.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError, RetryableRequestError

GRACE_SECONDS = 5
"""Seconds for sending these errors after the engine is gone. Then all connections are closed."""


class Stopping(GracefulHTTPError, RetryableRequestError):
    """What a request gets that the engine has left unfinished: HTTP 503, or an error event in its stream.

    vLLM passes the one kind through its engine client, and writes the other into streams without a traceback.
    """

    def __init__(self) -> None:
        message = "the server is shutting down and did not finish this request; send it to another one"
        super().__init__(message, HTTPStatus.SERVICE_UNAVAILABLE)


def watch(engine_client: Any, state: Any) -> None:
    """From now on, when vLLM has shut `engine_client` down, its requests end. Call it on the server's event loop.

    `state` is the app's; vLLM puts its HTTP server there (`state.server`) after this call.
    """
    loop, stop = asyncio.get_running_loop(), engine_client.shutdown

    def shutdown(timeout: float | None = None) -> None:
        try:
            stop(timeout=timeout)
        finally:
            if not loop.is_closed():  # vLLM calls this from a thread; and again when all is over
                loop.call_soon_threadsafe(_end, engine_client.output_processor, state)

    engine_client.shutdown = shutdown


def _end(output_processor: Any, state: Any) -> None:
    output_processor.propagate_error(Stopping())
    server = getattr(state, "server", None)
    if server is not None and server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = GRACE_SECONDS

"""Requests that an error in their policy has ended: clients get the reason, not vLLM's "Internal server error"."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from kvserve.engine.failure import PolicyFailed
from kvserve.policy import request as wire
from server.http.errors import fault_body
from server.http.usage import dumps

ERRORS = ("event: error", 'data: {"error"')
"""How the event begins with which vLLM says that a stream has failed."""


def failing(output_processor: Any, records: Mapping[str, Mapping[str, Any]]) -> list[tuple[Any, str]]:
    """vLLM's states, which it is about to drop, of the requests whose record says that they failed; and why."""
    why = {req_id: record[wire.ERROR] for req_id, record in records.items() if wire.ERROR in record}
    found = [(output_processor.request_states.get(req_id), said) for req_id, said in why.items()]
    return [(state, said) for state, said in found if state is not None]


def tell(output_processor: Any, failed: list[tuple[Any, str]], processed: Any) -> None:
    """Give the error to those who wait for these requests; `processed` is what vLLM made of the same outputs."""
    for state, why in failed:
        if state.parent_req is not None:  # nobody waits for the other sequences of the call any more
            others = output_processor.abort_requests([state.parent_req.request_id], internal=True)
            processed.reqs_to_abort.extend(others)
        if state.queue is not None:
            state.queue.put(PolicyFailed(why))


async def explained(chunks: AsyncIterator[Any], why: Callable[[], str | None], path: str) -> AsyncIterator[Any]:
    """The same stream of an endpoint, but if its policy has ended it with an event that says so.

    vLLM's own has no `param`, in /v1/messages not the message either, and in /v1/responses there is none: the
    connection is cut.
    """
    sent = 0
    try:
        async with aclosing(chunks) as inner:  # type: ignore[type-var]
            async for chunk in inner:
                wrong = isinstance(chunk, str) and chunk.startswith(ERRORS)
                yield _event(path, said, sent) if wrong and (said := why()) is not None else chunk
                sent += 1
    except Exception:
        if (said := why()) is None:
            raise
        yield _event(path, said, sent)


def _event(path: str, why: str, number: int) -> str:
    """The error event of each API."""
    if path.endswith("/messages"):
        body: dict[str, Any] = {"type": "error", "error": {"type": "internal_error", "message": why}}
    elif path.endswith("/responses"):
        about = {"code": "server_error", "message": why, "param": "kv_policy"}
        body = {"type": "error", "sequence_number": number, **about}
    else:
        return f"data: {dumps(fault_body(why))}\n\n"
    return f"event: error\ndata: {dumps(body)}\n\n"

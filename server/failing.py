"""Requests that their policy's own code has ended: clients hear why, in the place of vLLM's "Internal server error"."""

from collections.abc import Mapping
from typing import Any

from kvserve import request as wire
from kvserve.failed import PolicyFailed


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

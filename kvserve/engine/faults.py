"""Requests whose policy failed: each is ended with an error that says so, and the batch goes on.

A fault is noted where it happens, here or on a worker, and the request is ended at the next moment at which vLLM
itself would end one from outside: before it schedules a step or looks at the outcome of one. Tokens of that step are
dropped, those that a client has been sent before stay.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from kvserve.channels import Asked, with_record
from kvserve.policy.errors import PolicyFault

logger = logging.getLogger(__name__)


class Faults:
    """Those of one engine, until their requests have been ended and the clients told."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}  # by request
        self._ended: list[tuple[int, EngineCoreOutput]] = []  # with the client whose request it was

    def __contains__(self, req_id: str) -> bool:
        return req_id in self._found

    @contextmanager
    def guard(self, request: Request, doing: str) -> Iterator[None]:
        """Around calls into the policy of a request: what they raise is noted and goes no further."""
        try:
            yield
        except Exception as error:
            fault = PolicyFault(Asked.of(request.sampling_params).name, doing, error)
            logger.error("%s", fault, exc_info=error)
            self._found.setdefault(request.request_id, str(fault))

    def heard(self, errors: Mapping[str, str]) -> None:
        """What a worker reports, by request."""
        self._found = {**errors, **self._found}

    def end(self, scheduler: Any) -> None:
        """End the requests whose faults were noted since the last call."""
        found, self._found = self._found, {}
        for req_id, message in found.items():
            request = scheduler.requests.get(req_id)
            if request is None or request.is_finished():
                continue  # aborted meanwhile
            asked, record = Asked.of(request.sampling_params), scheduler.kv_record(request)
            scheduler.kv.failed(asked.name)
            scheduler.finish_requests(req_id, RequestStatus.FINISHED_ERROR)
            transfer = with_record(None, asked.call, record, message)
            self._ended.append((request.client_index, _last_word(request, message, transfer)))

    def tell(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Add the last words of the ended requests to what a step sends to the clients, by client."""
        for client, output in self._ended:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(output)
        self._ended.clear()


def _last_word(request: Request, message: str, transfer: dict[str, Any]) -> EngineCoreOutput:
    """As vLLM ends a request whose cache could not be loaded, with the reason where a client can find it."""
    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ERROR,
        stop_reason=message,
        events=request.take_events(),
        kv_transfer_params=transfer,
        trace_headers=request.trace_headers,
    )

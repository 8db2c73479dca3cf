"""Outcomes of requests on their way from the engine to the response that reports them.

The engine puts a record into `EngineCoreOutput.kv_transfer_params`, which vLLM would copy into response
bodies for n = 1 and drop for n > 1. So they are taken out where every engine output passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from kvserve.channels import take_record
from kvserve.policy import request as wire
from server.http.faults import failing, tell

SUMMED = (
    "logical_tokens",
    "kept_tokens",
    "evicted_tokens",
    "merged_tokens",
    "compactions",
    "resident_bytes",
    "full_bytes",
    "draft_tokens",
    "accepted_tokens",
    "shared_tokens",
)
"""Added up over the sequences of a call (n > 1, several prompts), as `completion_tokens` is; those that any has."""


class Ledger:
    """Records by call, and within a call by sequence. Records of a call that is not open are dropped."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[str, dict[str, Any]]] = {}
        self._faults: dict[str, str] = {}  # by call: what its policy did wrong
        self._mark = uuid4().hex  # begins all our ids; clients never see one
        self.passing: dict[str, dict[str, Any]] = {}  # by request, of the outputs that vLLM is processing now

    def __len__(self) -> int:
        return len(self._calls)

    def open(self) -> str:
        call = f"{self._mark}-{uuid4().hex}"
        self._calls[call] = {}
        return call

    def close(self, call: str) -> None:
        self._calls.pop(call, None)
        self._faults.pop(call, None)

    def guard(self, extra_args: dict[str, Any] | None) -> None:
        """Raise PolicyError for a call that is not one of ours, open or closed: queued requests outlive theirs."""
        wire.refuse_internal(extra_args, ours=lambda call: isinstance(call, str) and call.startswith(self._mark))

    @contextmanager
    def closing(self, call: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.close(call)

    def file(self, sequence: str, record: dict[str, Any]) -> None:
        """Keep the newest record of a sequence (the engine may report a running request more than once)."""
        record = dict(record)
        call = record.pop(wire.CALL, None)
        if not isinstance(call, str) or call not in self._calls:  # a fault here would end every request
            return
        if wire.ERROR in record:
            self._faults[call] = record[wire.ERROR]
        else:
            self._calls[call][sequence] = record

    def fault(self, call: str) -> str | None:
        """Why the policy of an open call has ended it, if it has."""
        return self._faults.get(call)

    def outcome(self, call: str) -> dict[str, Any] | None:
        """`usage.kv_cache` of a call so far: sums over its sequences; None if none has reported."""
        records = list(self._calls.get(call, {}).values())
        if not records:
            return None
        reported = [key for key in SUMMED if any(key in record for record in records)]
        return {**records[0], **{key: sum(record.get(key, 0) for record in records) for key in reported}}

    # -- where records come from ----------------------------------------------------------------------

    def take(self, output: Any) -> None:
        """File the record of one EngineCoreOutput and remove it, so that it never reaches a client."""
        if (record := take_record(output)) is not None:
            self.passing[output.request_id] = record
            self.file(output.request_id, record)

    def watch(self, output_processor: Any) -> None:
        """Read all that vLLM's OutputProcessor processes from now on; a second call changes nothing."""
        process = output_processor.process_outputs
        if getattr(process, "kvserve_ledger", None) is self:
            return

        def process_outputs(engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
            self.passing.clear()
            for output in engine_core_outputs:
                self.take(output)
            failed = failing(output_processor, self.passing)
            processed = process(engine_core_outputs, *args, **kwargs)
            tell(output_processor, failed, processed)
            return processed

        process_outputs.kvserve_ledger = self  # type: ignore[attr-defined]
        output_processor.process_outputs = process_outputs

"""Outcomes find their call, and nothing of ours stays in what vLLM sends on."""

from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

from kvserve.policy import request as wire
from kvserve.stats import Outcome
from server.http.ledger import SUMMED, Ledger


def _record(call: str | None, logical: int = 100) -> dict[str, Any]:
    outcome = Outcome("streaming", 0.25, logical, logical / 4, logical * 0.75, 0.0, 2, 1000, 4000)
    return {wire.CALL: call, **outcome.record()}


def _output(request_id: str, params: dict[str, Any] | None) -> SimpleNamespace:
    return SimpleNamespace(request_id=request_id, kv_transfer_params=params)


def test_sums_over_sequences() -> None:
    ledger = Ledger()
    call = ledger.open()
    ledger.file("0_a", _record(call, 100))
    ledger.file("1_a", _record(call, 60))
    outcome = ledger.outcome(call)
    assert outcome is not None
    assert outcome["logical_tokens"] == 160
    assert outcome["kept_tokens"] == 40
    assert outcome["full_bytes"] == 8000
    assert (outcome["policy"], outcome["budget"]) == ("streaming", 0.25)


def test_what_only_some_sequences_drafted_is_summed_too() -> None:
    ledger = Ledger()
    call = ledger.open()
    ledger.file("0_a", _record(call))
    ledger.file("1_a", {**_record(call), "draft_tokens": 8, "accepted_tokens": 3})
    ledger.file("2_a", {**_record(call), "draft_tokens": 4, "accepted_tokens": 4})
    outcome = ledger.outcome(call) or {}
    assert (outcome["draft_tokens"], outcome["accepted_tokens"]) == (12, 7)


def test_what_was_shared_is_summed_and_only_said_by_those_who_asked() -> None:
    ledger = Ledger()
    call = ledger.open()
    ledger.file("0_a", {**_record(call), "shared_tokens": 0})  # it asked, and was the first
    ledger.file("1_a", {**_record(call), "shared_tokens": 800})
    assert (ledger.outcome(call) or {})["shared_tokens"] == 800
    other = ledger.open()
    ledger.file("0_b", _record(other))
    assert "shared_tokens" not in (ledger.outcome(other) or {})


def test_has_exactly_the_fields_of_an_outcome() -> None:
    ledger = Ledger()
    call = ledger.open()
    ledger.file("a", _record(call))
    assert list(ledger.outcome(call) or {}) == [each.name for each in fields(Outcome) if each.default is MISSING]
    assert set(SUMMED) < set(Outcome.__dataclass_fields__)


def test_a_later_record_of_a_sequence_replaces_the_earlier() -> None:
    ledger = Ledger()
    call = ledger.open()
    ledger.file("a", _record(call, 100))
    ledger.file("a", _record(call, 140))
    assert (ledger.outcome(call) or {})["logical_tokens"] == 140


def test_unknown_and_closed_calls_file_nothing() -> None:
    ledger = Ledger()
    ledger.file("a", _record(None))
    ledger.file("a", _record("somebody else's"))
    ledger.file("a", _record(""))  # for its span only
    call = ledger.open()
    ledger.close(call)
    ledger.file("a", _record(call))
    assert ledger.outcome(call) is None
    assert len(ledger) == 0


def test_watch_takes_the_record_out_before_vllm_sees_it() -> None:
    seen: list[Any] = []

    def process_outputs(outputs: list[Any], timestamp: float, *, weight_version: str) -> str:
        seen.extend(output.kv_transfer_params for output in outputs)
        return f"processed {len(outputs)} {timestamp} {weight_version}"

    processor = SimpleNamespace(process_outputs=process_outputs)
    ledger = Ledger()
    ledger.watch(processor)
    ledger.watch(processor)
    call = ledger.open()
    outputs = [
        _output("a", {"kvserve": _record(call)}),
        _output("b", {"kvserve": _record(call), "remote": 1}),
        _output("c", {"remote": 2}),
        _output("d", None),
    ]
    assert processor.process_outputs(outputs, 1.5, weight_version="w") == "processed 4 1.5 w"
    assert seen == [None, {"remote": 1}, {"remote": 2}, None]
    assert (ledger.outcome(call) or {})["logical_tokens"] == 200

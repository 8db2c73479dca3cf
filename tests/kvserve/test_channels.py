"""What travels between the processes comes out as it went in, and the docs name all that pack and unpack."""

import inspect
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kvserve import channels
from kvserve.channels import Asked, Feedback, Plan
from kvserve.policy import Facts

pytest.importorskip("vllm")

PLAN = Plan("a", 0, 300, 300, 64, (1, 2, 3), (1,))
DOCS = Path(__file__).parents[2] / "docs" / "life-of-a-request.md"


def params(**extra: Any) -> Any:
    return SimpleNamespace(extra_args=extra or None)


def test_a_request() -> None:
    asked = Asked('{"name": "knorm"}', "call", 3)
    assert Asked.of(params(**asked.into({"other": 1}))) == asked
    assert Asked().into({"other": 1}) == {"other": 1}
    assert Asked.of(None) == Asked.of(params()) == Asked.of(params(kv_canary="many")) == Asked()
    assert (asked.name, Asked().name, Asked("{").name) == ("knorm", "unknown", "unknown")
    assert [Asked(text).compresses for text in ("knorm:0.5", "full", None)] == [True, False, False]


def test_plans_survive_the_way_to_another_process() -> None:
    from vllm.v1.core.sched.output import SchedulerOutput

    output = SchedulerOutput.make_empty()
    assert channels.plans_of(output) == []
    channels.with_plans(output, [PLAN])
    assert channels.plans_of(pickle.loads(pickle.dumps(output))) == [PLAN]


def test_feedback_of_now_and_of_later() -> None:
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

    class Copying(AsyncModelRunnerOutput):
        def get_output(self) -> ModelRunnerOutput:
            return ModelRunnerOutput([], {})

        def get_kv_connector_output(self) -> None:
            """Abstract from vLLM 0.33 on."""

    feedback = Feedback(merged={"a": 1.5})
    later: Any = channels.with_feedback(Copying(), feedback)
    assert isinstance(later, Copying)
    for output in (channels.with_feedback(ModelRunnerOutput([], {}), feedback), later.get_output()):
        assert channels.feedback_of(pickle.loads(pickle.dumps(output))) == feedback
    assert channels.with_feedback(None, feedback) is None
    assert channels.feedback_of(channels.with_feedback(ModelRunnerOutput([], {}), None)) is None


def test_a_record_leaves_a_connectors_parameters_alone() -> None:
    sent = channels.with_record({"remote": 1}, "call", {"kept_tokens": 3, "budget": None}, "broken")
    output = SimpleNamespace(kv_transfer_params=sent)
    assert channels.take_record(output) == {"kept_tokens": 3, "budget": None, "kv_call": "call", "error": "broken"}
    assert output.kv_transfer_params == {"remote": 1}
    assert channels.take_record(output) is None


def test_totals_leave_vllms_counters_alone() -> None:
    stats = SimpleNamespace(num_kv_fetch_reqs_by_stage={"waiting": 2})
    channels.add_totals(stats, '{"at": 1}')
    assert channels.take_totals(stats) == {"at": 1}
    assert stats.num_kv_fetch_reqs_by_stage == {"waiting": 2} and channels.take_totals(stats) is None


def test_facts() -> None:
    @dataclass
    class Ready:
        status: str = "READY"

    facts = Facts(4, 1, 128, 1000, 2048, 512)
    payload = msgspec.msgpack.encode(channels.with_facts(Ready(), facts))
    assert channels.facts_in(payload) == facts
    assert msgspec.msgpack.decode(payload, type=Ready) == Ready()  # a client without kvserve
    assert channels.facts_in(msgspec.msgpack.encode(Ready())) is None and channels.facts_in(b"") is None


def test_the_docs_name_all_that_pack_and_unpack() -> None:
    rows = [line.split("|")[5:7] for line in DOCS.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d ", line)]
    named = {name.strip(" `") for row in rows for name in row}
    functions = inspect.getmembers(channels, inspect.isfunction)
    ours = {name for name, each in functions if each.__module__ == channels.__name__ and not name.startswith("_")}
    assert len(rows) == 8 and named == ours | {"Asked.of", "Asked.into"}


def test_feedback_of_an_earlier_stage_is_one_more_tensor_and_never_reaches_the_model() -> None:
    torch = pytest.importorskip("torch")
    from vllm.sequence import IntermediateTensors

    hidden = IntermediateTensors({"hidden_states": torch.ones(2, 4)})
    first = Feedback({"h2o": [0.5]}, {"a": 0.25}, {}, {"b": "it failed"})
    for ranks in (1, 2, 3):
        carried = channels.with_earlier(hidden, first, ranks)
        assert ranks == 1 or carried.tensors[channels.EARLIER].numel() % ranks
        assert channels.take_earlier(carried) == first
        assert list(carried.tensors) == ["hidden_states"]
    assert channels.with_earlier(hidden, None, 1) is hidden
    assert channels.take_earlier(hidden) is None
    both = Feedback({"h2o": [0.25], "tova": [1.0]}, {"a": 0.5}).after(first)
    assert (both.seconds, both.merged) == ({"h2o": [0.75], "tova": [1.0]}, {"a": 0.75})
    assert both.errors == {"b": "it failed"}

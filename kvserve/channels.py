"""What travels between the processes of a server: eight channels, each a place in one of vLLM's own messages.

Packed and unpacked here and nowhere else. docs/life-of-a-request.md has a table of them.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec

from kvserve.policy import Facts
from kvserve.policy import request as wire
from kvserve.policy.errors import PolicyError
from kvserve.policy.request import CALL, CANARY, ERROR, KEY

# -- 1. a request: API process -> scheduler and workers, in SamplingParams.extra_args -------------------


class Asked(NamedTuple):
    """What kvserve's own fields of a request say."""

    policy: str | None = None  # canonical string, see `kvserve.policy.request.read`
    call: str | None = None  # under which the API process files the outcome; "" where nobody asks for it
    judged: int | None = None  # of a canary's replay: tokens before the answer that it is about

    @classmethod
    def of(cls, params: Any) -> "Asked":
        """From a request's SamplingParams; None, as a pooling request has, says nothing of ours."""
        found = (params.extra_args if params is not None else None) or {}
        judged = found.get(CANARY)
        return cls(found.get(KEY), found.get(CALL), judged if isinstance(judged, int) else None)

    def into(self, extra_args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A request's extra arguments with ours in them."""
        ours = {KEY: self.policy, CALL: self.call, CANARY: self.judged}
        return {**(extra_args or {}), **{name: value for name, value in ours.items() if value is not None}}

    @property
    def name(self) -> str:
        """What the policy is called, also if it cannot be made."""
        try:
            return str(wire.fields(self.policy)["name"])
        except (KeyError, PolicyError):
            return "unknown"

    @property
    def compresses(self) -> bool:
        """Raises PolicyError for a policy that cannot be read."""
        return self.policy is not None and wire.read(self.policy).policy.compresses


# -- 2. plans: scheduler -> workers, on the SchedulerOutput of the step that they come before -------------


@dataclass(frozen=True)
class Plan:
    """Compact one request in one layer group before the step that carries this plan runs.

    Self-contained: it needs no agreement on the batch, so it survives unscheduled requests, asynchronous
    scheduling, several processes and tensor parallelism.
    """

    req_id: str
    group: int
    logical: int  # tokens seen when the plan runs
    held: int  # tokens held before
    keep: int  # tokens kept by each layer of the group
    src: tuple[int, ...]  # block ids before
    dst: tuple[int, ...]  # block ids after
    again: bool = False  # done before, and counted, until a preemption undid it


def with_plans(output: Any, plans: Sequence[Plan]) -> Any:
    """vLLM's SchedulerOutput, which is pickled with all its attributes, carrying the plans of its step."""
    output.kv_plans = list(plans)
    return output


def plans_of(output: Any) -> list[Plan]:
    found: list[Plan] = getattr(output, "kv_plans", [])
    return found


# -- 3. news of shared compressed prefixes: scheduler -> workers, there too --------------------------------


@dataclass
class PrefixNews:
    """What a step does to compressed prefixes, by their ids."""

    made: dict[str, str] = field(default_factory=dict)  # by request: what its plans of this step leave
    taken: dict[str, str] = field(default_factory=dict)  # by request that begins with this step: what it starts from
    dropped: list[str] = field(default_factory=list)  # before this step

    def __bool__(self) -> bool:
        return bool(self.made or self.taken or self.dropped)


def with_prefixes(output: Any, news: PrefixNews) -> Any:
    """vLLM's SchedulerOutput carrying them."""
    output.kv_prefixes = news
    return output


def prefixes_of(output: Any) -> PrefixNews:
    return getattr(output, "kv_prefixes", _NO_NEWS)


_NO_NEWS = PrefixNews()


# -- 4. feedback: worker -> scheduler, on the ModelRunnerOutput of a step ---------------------------------


@dataclass
class Feedback:
    """What a worker measured and found since the last step."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each compaction, by policy
    merged: dict[str, float] = field(default_factory=dict)  # by request: tokens that went into others, mean of layers
    weights: dict[str, list[float]] = field(default_factory=dict)  # by request: each layer's share, mean 1
    errors: dict[str, str] = field(default_factory=dict)  # by request: what its policy did wrong, which ends it

    def add(self, policy: str, seconds: float) -> None:
        self.seconds.setdefault(policy, []).append(seconds)

    def after(self, earlier: "Feedback") -> "Feedback":
        """Of two pipeline stages: each has compacted its layers of the same requests."""
        seconds = {policy: self._both(earlier, policy) for policy in {**earlier.seconds, **self.seconds}}
        merged = {key: earlier.merged.get(key, 0.0) + self.merged.get(key, 0.0) for key in earlier.merged | self.merged}
        return Feedback(seconds, merged, self.weights | earlier.weights, self.errors | earlier.errors)

    def _both(self, earlier: "Feedback", policy: str) -> list[float]:
        pairs = zip_longest(earlier.seconds.get(policy, ()), self.seconds.get(policy, ()), fillvalue=0.0)
        return [before + here for before, here in pairs]

    def __bool__(self) -> bool:
        return bool(self.seconds or self.merged or self.weights or self.errors)


def with_feedback(output: Any, feedback: Feedback | None) -> Any:
    """The model runner's output carrying `feedback`, now or once it has been copied from the device."""
    if feedback is None:
        return output
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

    if isinstance(output, AsyncModelRunnerOutput):
        copied = output.get_output
        output.get_output = lambda: with_feedback(copied(), feedback)  # type: ignore[method-assign]
    elif isinstance(output, ModelRunnerOutput):
        output.kv_feedback = feedback  # type: ignore[attr-defined]
    return output


def feedback_of(output: Any) -> Feedback | None:
    return getattr(output, "kv_feedback", None)


# -- 5. outcomes and faults: scheduler -> API process, in the KV connector's place of an EngineCoreOutput ----

RECORD = "kvserve"


def with_record(
    transfer: dict[str, Any] | None, call: str | None, outcome: Mapping[str, Any], error: str | None = None
) -> dict[str, Any]:
    """`kv_transfer_params` with what became of a request so far.

    error: what its policy did wrong, which ended it.
    """
    ours = {name: value for name, value in ((CALL, call), (ERROR, error)) if value is not None}
    return {**(transfer or {}), RECORD: {**outcome, **ours}}


def take_record(output: Any) -> dict[str, Any] | None:
    """Take the record out of an EngineCoreOutput, so that it never reaches a client; None if it has none."""
    params = output.kv_transfer_params
    if not params or RECORD not in params:
        return None
    output.kv_transfer_params = {name: value for name, value in params.items() if name != RECORD} or None
    record: dict[str, Any] = params[RECORD]
    return record


# -- 6. totals: scheduler -> API process, as the name of a counter in SchedulerStats ------------------------

MARK = "kvserve:"


def add_totals(stats: Any, snapshot: str) -> None:
    """Send `kvserve.stats.EngineTotals.dump()` with vLLM's scheduler statistics."""
    stats.num_kv_fetch_reqs_by_stage[MARK + snapshot] = 0


def take_totals(stats: Any) -> dict[str, Any] | None:
    """Take the snapshot out of vLLM's scheduler statistics; None if there is none."""
    for name in list(stats.num_kv_fetch_reqs_by_stage):
        if name.startswith(MARK):
            del stats.num_kv_fetch_reqs_by_stage[name]
            snapshot: dict[str, Any] = json.loads(name.removeprefix(MARK))
            return snapshot
    return None


# -- 7. facts: engine -> API process at the start, as one more field of EngineCoreReadyResponse --------------


class _Ready(msgspec.Struct):
    """What we read of the message; a client without kvserve skips it."""

    kv_facts: Facts | None = None


def with_facts(ready: Any, facts: Facts) -> Any:
    extended = make_dataclass(type(ready).__name__, [("kv_facts", Facts | None, None)], bases=(type(ready),))
    return extended(**{each.name: getattr(ready, each.name) for each in fields(ready)}, kv_facts=facts)


def facts_in(payload: bytes) -> Facts | None:
    return msgspec.msgpack.decode(payload, type=_Ready).kv_facts if payload else None


# -- 8. feedback of earlier stages: worker -> worker of the next pipeline stage, with the step's hidden states ----

EARLIER = "kvserve"


def with_earlier(tensors: Any, feedback: Feedback | None, ranks: int) -> Any:
    """vLLM's IntermediateTensors, of which some transports take nothing but tensors, carrying `feedback`.

    ranks: workers of a stage. Where a tensor's size is a multiple of that, vLLM has each of them send a part of it.
    """
    if feedback is None:
        return tensors
    import torch

    data = pickle.dumps(feedback)
    padding = bytes(1 if ranks > 1 and len(data) % ranks == 0 else 0)
    packed = torch.frombuffer(bytearray(data + padding), dtype=torch.uint8)
    return type(tensors)({**tensors.tensors, EARLIER: packed})


def take_earlier(tensors: Any) -> Feedback | None:
    """Take the feedback out, so that it never reaches the model; None if there is none."""
    packed = tensors.tensors.pop(EARLIER, None)
    found: Feedback | None = None if packed is None else pickle.loads(packed.numpy().tobytes())
    return found

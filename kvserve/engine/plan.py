"""What travels from the scheduler to the workers."""

from dataclasses import dataclass, field

from vllm.v1.core.sched.output import SchedulerOutput


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


@dataclass
class KVSchedulerOutput(SchedulerOutput):
    """vLLM's scheduler output with the plans of this step."""

    kv_plans: list[Plan] = field(default_factory=list)

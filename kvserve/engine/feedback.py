"""What travels from a worker back to the scheduler: what its plans cost and did, and budgets that it worked out."""

from dataclasses import dataclass, field
from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

FIELD = "kv_feedback"


@dataclass
class Feedback:
    """What a worker measured and found since the last step."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each compaction, by policy
    merged: dict[str, float] = field(default_factory=dict)  # by request: tokens that went into others, mean of layers
    weights: dict[str, list[float]] = field(default_factory=dict)  # by request: each layer's share, mean 1
    errors: dict[str, str] = field(default_factory=dict)  # by request: what its policy did wrong, which ends it

    def add(self, policy: str, seconds: float) -> None:
        self.seconds.setdefault(policy, []).append(seconds)

    def __bool__(self) -> bool:
        return bool(self.seconds or self.merged or self.weights or self.errors)


def attached(output: Any, feedback: Feedback | None) -> Any:
    """The model runner's output carrying `feedback`, now or once it has been copied from the device."""
    if feedback is None:
        return output
    if isinstance(output, AsyncModelRunnerOutput):
        return _Later(output, feedback)
    if isinstance(output, ModelRunnerOutput):
        setattr(output, FIELD, feedback)
    return output


def taken(output: Any) -> Feedback | None:
    """The feedback that an output carries."""
    return getattr(output, FIELD, None)


class _Later(AsyncModelRunnerOutput):
    """An output that is still being copied."""

    def __init__(self, inner: AsyncModelRunnerOutput, feedback: Feedback) -> None:
        self._inner, self._feedback = inner, feedback

    def get_output(self) -> ModelRunnerOutput:
        output: ModelRunnerOutput = attached(self._inner.get_output(), self._feedback)
        return output

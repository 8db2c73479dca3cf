"""The first control: no compression."""

from typing import ClassVar, Literal

from kvserve.policy import Moment, Policy


class Full(Policy):
    """Keep everything: the request is served exactly as by stock vLLM."""

    name: ClassVar[str] = "full"
    compresses: ClassVar[bool] = False
    budget: Literal[1.0] = 1.0

    def due(self, at: Moment) -> int | None:
        return None

    def peak(self, prompt: int, generate: int, chunk: int, whole: bool) -> int:
        return prompt + generate

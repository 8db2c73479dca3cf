"""The first control: no compression."""

from typing import ClassVar

from pydantic import Field

from kvserve.policy import Moment, Policy


class Full(Policy):
    """Keep everything: the request is served exactly as by stock vLLM."""

    name: ClassVar[str] = "full"
    compresses: ClassVar[bool] = False
    budget: float = Field(1.0, ge=1, le=1, description="Always 1.0: all tokens")

    def due(self, at: Moment) -> int | None:
        return None

    def peak(self, prompt: int, generate: int, chunk: int, whole: bool) -> int:
        return prompt + generate

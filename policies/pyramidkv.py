"""Early layers spread their attention, late layers focus it: give the early ones more."""

from typing import ClassVar

from pydantic import Field

from kvserve.policy import UnevenLayers
from policies.snapkv import SnapKV


class PyramidKV(UnevenLayers, SnapKV):
    """SnapKV's scores with budgets that shrink linearly with depth.

    Beyond the window the first layer gets 2M - M/beta, the last one M/beta, their mean is M = budget -
    window; if the first would get more than there is, it gets all and the last one the difference.
    """

    name: ClassVar[str] = "pyramidkv"
    paper: ClassVar[str] = "arXiv:2406.02069"

    beta: int = Field(20, ge=2, le=1000, description="How steep: the last layer keeps 1/beta of the mean")

    def shares(self, keep: int, num_layers: int, held: int) -> list[int] | None:
        mean, room = keep - self.window, held - self.window
        if num_layers < 2 or mean <= 0:
            return None
        low = mean / self.beta
        high = 2 * mean - low
        if high > room:
            high, low = room, 2 * mean - room
        step = (high - low) / (num_layers - 1)
        return [self.window + round(high - layer * step) for layer in range(num_layers)]

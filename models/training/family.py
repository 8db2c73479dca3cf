"""The family: which models there are, with their sizes and their plans."""

from dataclasses import dataclass
from pathlib import Path

from models import MINI
from models.training.network import NetworkShape
from models.training.stages import LAST_MIX, LATE_MIX, TrainingPlan, TrainingStage


@dataclass(frozen=True)
class Member:
    """One model: its name is that of its folder."""

    name: str
    shape: NetworkShape
    plan: TrainingPlan

    @property
    def folder(self) -> Path:
        return MINI.parent / self.name

    @property
    def work(self) -> Path:
        """Where its checkpoint lies while it is trained."""
        return MINI.parent / ".work" / self.name


MICRO = TrainingPlan(
    stages=(
        TrainingStage(tokens=256, rows=8, steps=450, rate=2e-3, end_rate=2e-3),
        TrainingStage(tokens=512, rows=8, steps=350, rate=2e-3, end_rate=1.5e-3),
        TrainingStage(tokens=1024, rows=4, steps=165, rate=1.5e-3, end_rate=1.323e-3, mix=LATE_MIX),
        TrainingStage(tokens=1024, rows=4, steps=70, rate=1.3e-3, end_rate=1.2e-3, mix=LAST_MIX),
        TrainingStage(tokens=2048, rows=2, steps=130, rate=1.2e-3, end_rate=2e-5, mix=LAST_MIX),
        TrainingStage(tokens=1024, rows=4, steps=100, rate=1e-3, end_rate=1e-5, mix=LAST_MIX),
    )
)
BIASED = TrainingPlan(
    stages=(
        TrainingStage(tokens=256, rows=8, steps=420, rate=2e-3, end_rate=2e-3),
        TrainingStage(tokens=512, rows=8, steps=140, rate=2e-3, end_rate=2e-5),
        TrainingStage(tokens=1024, rows=4, steps=100, rate=1e-3, end_rate=1e-5, mix=LAST_MIX),
    )
)

FAMILY = {
    member.name: member
    for member in (
        Member("mini", NetworkShape(), TrainingPlan()),
        Member("micro", NetworkShape(width=128, hidden=320), MICRO),
        Member("biased", NetworkShape(width=128, hidden=320, bias=True), BIASED),
    )
}

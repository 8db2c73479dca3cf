"""The stage table: which lengths are trained for how long, at which rate, with which mixture of tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MIX = {"niah": 2.0, "niah_free": 0.8, "mqar": 1.0, "vt": 1.5, "quote": 1.5, "chain": 1.5, "copy": 0.4, "lm": 0.2}
LATE_MIX = {"niah": 1.5, "niah_free": 1.8, "mqar": 0.8, "vt": 1.5, "quote": 1.2, "chain": 1.8, "copy": 0.4, "lm": 0.2}
LAST_MIX = {"niah": 1.2, "niah_free": 2.2, "mqar": 0.4, "vt": 1.3, "quote": 0.9, "chain": 3.2, "copy": 0.4, "lm": 0.15}


@dataclass(frozen=True)
class TrainingStage:
    """``steps`` batches of ``rows`` times ``tokens`` tokens; the rate goes linearly from ``rate`` to ``end_rate``."""

    tokens: int
    rows: int
    steps: int
    rate: float
    end_rate: float
    mix: Mapping[str, float] = field(default_factory=lambda: dict(MIX))

    def __post_init__(self) -> None:
        for name in ("tokens", "rows", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def rate_at(self, step: int) -> float:
        return self.rate + (self.end_rate - self.rate) * step / self.steps


@dataclass(frozen=True)
class TrainingPlan:
    """Everything but the sizes that decides a run's outcome."""

    stages: tuple[TrainingStage, ...] = (
        TrainingStage(tokens=256, rows=8, steps=450, rate=1.5e-3, end_rate=1.5e-3),
        TrainingStage(tokens=512, rows=8, steps=350, rate=1.5e-3, end_rate=1.2e-3),
        TrainingStage(tokens=1024, rows=4, steps=450, rate=1e-3, end_rate=1e-3, mix=LATE_MIX),
        TrainingStage(tokens=2048, rows=2, steps=400, rate=1e-3, end_rate=2e-5, mix=LATE_MIX),
        TrainingStage(tokens=1024, rows=4, steps=19, rate=2e-4, end_rate=3.9e-4, mix=LAST_MIX),
        TrainingStage(tokens=1024, rows=2, steps=90, rate=6e-4, end_rate=1e-3, mix=LAST_MIX),
        TrainingStage(tokens=2048, rows=2, steps=90, rate=1e-3, end_rate=6e-4, mix=LAST_MIX),
        TrainingStage(tokens=4096, rows=1, steps=80, rate=6e-4, end_rate=1e-5, mix=LAST_MIX),
        TrainingStage(tokens=512, rows=8, steps=70, rate=6e-4, end_rate=1e-5, mix=LATE_MIX),
    )
    seed: int = 0
    warm_up: int = 50  # steps
    weight_decay: float = 0.1
    clip: float = 1.0
    average: float = 0.99  # decay per step of the averaged weights, which are what is exported

    def rate_at(self, stage: int, step: int) -> float:
        """Learning rate at ``step`` of ``stage``; the warm-up belongs to the first stage alone."""
        warm = min(1.0, (step + 1) / self.warm_up) if stage == 0 else 1.0
        return warm * self.stages[stage].rate_at(step)

"""Teach a frozen model summary tokens by self-distillation, the first stage of the paper's recipe (arXiv:2604.24432).

The model reads each row twice: with its whole cache as the teacher, with summaries as the student. Only the summaries'
embedding and projections are trained, so that without them the model stays what it was, bit for bit.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.summary.network import RowLayout, SummaryRows, read
from models.training.network import Network
from models.training.rows import Batch

LANGUAGE, DIVERGENCE, ATTENTION = 1.0, 5.0, 5.0  # weights of the three losses
LARGEST = 0.1  # a squared difference of attention outputs counts at most this much
SAVE_EVERY = 50  # steps


class ResumeError(ValueError):
    """The checkpoint belongs to a run with other arguments."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the model and its text that decides a run's outcome."""

    layout: RowLayout
    steps: int
    rate: float = 1e-3
    warm_up: int = 20  # steps
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate: up during the warm-up, then down to nothing at the end."""
        return self.rate * min((step + 1) / self.warm_up, 1.0, (self.steps - step) / max(1, self.steps - self.warm_up))


class Adapter:
    """Summaries in training, their optimiser, and the step: everything that a checkpoint holds.

    ``batch`` gives the rows of a step; equal steps must give equal rows, so that a resumed run sees what it would have.
    """

    def __init__(
        self, network: Network, recipe: Recipe, batch: Callable[[int], Batch], checkpoint: Path, about: dict[str, Any]
    ) -> None:
        self.network = network.requires_grad_(False)
        self.recipe, self.batch, self.checkpoint = recipe, batch, checkpoint
        self.identity = {**asdict(recipe), **about}
        self.own = SummaryRows(network).to(network.embedding.weight.device)
        self.optimizer = torch.optim.AdamW(self.own.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
        self.step, self.stopped = 0, False
        self._load()

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.steps

    def advance(self) -> dict[str, float]:
        """One optimiser step; the three losses."""
        parts = losses(self.network, self.own, self.recipe.layout, self.batch(self.step))
        loss = LANGUAGE * parts["lm"] + DIVERGENCE * parts["kl"] + ATTENTION * parts["mse"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.own.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % SAVE_EVERY == 0 and not self.done:
            self.save()
        return {name: part.item() for name, part in parts.items()}

    def stop(self, *_: object) -> None:
        """Signal handler: let the step in progress be the last one."""
        self.stopped = True

    def save(self) -> None:
        state = {
            "identity": self.identity,
            "own": self.own.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_name(self.checkpoint.name + ".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def _load(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["identity"] != self.identity:
            changed = [name for name, value in self.identity.items() if state["identity"].get(name) != value]
            raise ResumeError(
                f"{self.checkpoint} is of a run with another {', '.join(changed)}; go on with the same, or delete it"
            )
        self.own.load_state_dict(state["own"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def losses(network: Network, own: SummaryRows, layout: RowLayout, batch: Batch) -> dict[str, Tensor]:
    """``lm``: of the text; ``kl``: from the teacher's next tokens; ``mse``: of attention outputs, mean over layers."""
    device, dtype = network.embedding.weight.device, network.embedding.weight.dtype
    ids, positions, targets, weights = (
        torch.from_numpy(part).to(device) for part in (batch.ids, batch.positions, batch.targets, batch.weights)
    )
    with torch.no_grad():
        teacher = read(network, None, ids, None, dtype)
        wanted = network.predict(teacher.hidden, positions).log_softmax(-1)
    student = read(network, own, ids, layout, dtype)
    found = network.predict(student.hidden, positions).log_softmax(-1)
    lm = F.nll_loss(found, targets, reduction="none")
    pairs = zip(student.mixed, teacher.mixed, strict=True)
    each = [(ours - theirs).float().square().clamp(max=LARGEST).mean() for ours, theirs in pairs]
    return {
        "lm": (lm * weights).sum() / weights.sum(),
        "kl": F.kl_div(found, wanted, log_target=True, reduction="batchmean"),
        "mse": torch.stack(each).mean(),
    }

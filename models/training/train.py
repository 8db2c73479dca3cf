"""Train a model of the family on one core. Stop with Ctrl-C and start again: the run goes on where it was."""

import argparse
import json
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tqdm import tqdm

from models.tasks import tokens
from models.tasks.scene import World
from models.training import structure
from models.training.export import export
from models.training.family import FAMILY
from models.training.network import Network, NetworkShape
from models.training.rows import Batch, make_batch
from models.training.stages import TrainingPlan

SAVE_EVERY = 100  # steps


class TrainingRun:
    """A network, its optimiser, and the place in the plan: everything that a checkpoint holds."""

    def __init__(self, shape: NetworkShape, plan: TrainingPlan, work: Path, compiled: bool) -> None:
        self.plan, self.work = plan, work
        self.tokenizer = _tokenizer(work)
        self.world = World(self.tokenizer, held_out=False)
        self.network = self._started(shape)
        self.optimizer = _optimizer(self.network, plan.weight_decay)
        self.average = {name: weight.clone() for name, weight in self.network.state_dict().items()}
        self.stage, self.step, self.seconds, self.stopped = 0, 0, 0.0, False
        self.loss = torch.compile(self._loss, dynamic=False) if compiled else self._loss
        self._load()

    def advance(self) -> float:
        """One optimiser step; returns the loss, in nats per weighted token."""
        began = time.monotonic()
        loss = self.loss(*self._tensors(self._batch()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.stage, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow()
        self.step += 1
        self.seconds += time.monotonic() - began
        return loss.item()

    def stop(self, *_: object) -> None:
        """Signal handler: let the step in progress be the last one."""
        self.stopped = True

    def end_stage(self, folder: Path) -> None:
        """Export the averaged weights, then save with the next stage as the place to go on."""
        self._export(folder)
        self.stage, self.step = self.stage + 1, 0
        self.save()

    def save(self) -> None:
        state = {
            "seed": self.plan.seed,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.work / "checkpoint.new")
        os.replace(self.work / "checkpoint.new", self.work / "checkpoint.pt")

    def _started(self, shape: NetworkShape) -> torch.nn.Module:
        """The untrained network."""
        network = Network(shape)
        structure.initialise(network, self.plan.seed)
        return network

    def _export(self, folder: Path) -> None:
        export(self.average, self.network.shape, self.tokenizer, folder)

    def _load(self) -> None:
        if not (self.work / "checkpoint.pt").exists():
            return
        state = torch.load(self.work / "checkpoint.pt", weights_only=True)
        if state["seed"] != self.plan.seed:
            raise ValueError(f"seed must be {state['seed']}, as in {self.work / 'checkpoint.pt'}, got {self.plan.seed}")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]

    def _batch(self) -> Batch:
        stage = self.plan.stages[self.stage]
        seed = f"train/{self.plan.seed}/{self.stage}/{self.step}"
        return make_batch(self.world, stage.mix, stage.rows, stage.tokens, seed)

    @staticmethod
    def _tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(a) for a in (batch.ids, batch.positions, batch.targets, batch.weights))

    def _loss(self, ids, positions, targets, weights) -> torch.Tensor:
        each = F.cross_entropy(self.network(ids, positions, torch.bfloat16), targets, reduction="none")
        return (each * weights).sum() / weights.sum()

    @torch.no_grad()
    def _follow(self) -> None:
        current = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[n] for n in self.average], 1 - self.plan.average)


def train(
    shape: NetworkShape,
    plan: TrainingPlan,
    work: Path,
    folder: Path,
    compiled: bool,
    made: type[TrainingRun] = TrainingRun,
) -> None:
    """Work through the stages that are left; a signal to stop ends the current step first and then saves."""
    run = made(shape, plan, work, compiled)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, run.stop)
    while run.stage < len(plan.stages):
        _train_stage(run)
        if run.stopped:
            run.save()
            print(f"saved {work / 'checkpoint.pt'}; start again to go on")
            return
        run.end_stage(folder)
    recipe = {
        "shape": asdict(shape),
        "plan": asdict(plan),
        "hours": round(run.seconds / 3600, 3),
        "torch": torch.__version__,
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def _train_stage(run: TrainingRun) -> None:
    stage, smooth = run.plan.stages[run.stage], None
    title = f"stage {run.stage + 1}/{len(run.plan.stages)}, {stage.tokens} tokens"
    with tqdm(total=stage.steps, initial=run.step, desc=title, unit="step", mininterval=5) as bar:
        while run.step < stage.steps and not run.stopped:
            loss = run.advance()
            smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            bar.update()
            if run.step % SAVE_EVERY == 0:
                run.save()


def _tokenizer(work: Path) -> Tokenizer:
    path = work / "tokenizer.json"
    if not path.exists():
        tokens.build().save(str(path))
    return Tokenizer.from_file(str(path))


def _optimizer(network: Network, weight_decay: float) -> torch.optim.Optimizer:
    matrices = [w for name, w in network.named_parameters() if w.ndim == 2 and "embedding" not in name]
    others = [w for name, w in network.named_parameters() if w.ndim < 2 or "embedding" in name]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.train", description=__doc__)
    parser.add_argument("model", nargs="?", choices=sorted(FAMILY), default="mini")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint (default: models/.work/MODEL)")
    parser.add_argument("--to", type=Path, help="model folder, rewritten after every stage (default: models/MODEL)")
    parser.add_argument("--seed", type=int, default=TrainingPlan.seed)
    parser.add_argument("--threads", type=int, default=1, help="two threads on a busy machine are slower than one")
    parser.add_argument("--compile", action="store_true", help="pays only where attention does not dominate; needs g++")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    member = FAMILY[args.model]
    work, folder = args.work or member.work, args.to or member.folder
    work.mkdir(parents=True, exist_ok=True)
    train(member.shape, replace(member.plan, seed=args.seed), work, folder, args.compile)


if __name__ == "__main__":
    main()

"""Train a network and its summaries together, so that one set of weights reads with summaries and without.

Three quarters of a batch's rows are read with summaries, the others with the whole cache. Stop with Ctrl-C and start
again: the run goes on where it was.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import MINI
from models.summary import structure as summary_structure
from models.summary.file import BESIDE, save
from models.summary.network import RowLayout, SummaryRows, kinds_of, read
from models.training.export import export
from models.training.network import Network, NetworkShape
from models.training.stages import TrainingPlan, TrainingStage
from models.training.train import TrainingRun, train

NAME = "kwai"
SHAPE = NetworkShape(width=176, heads=8, kv_heads=8, head_dim=32, hidden=176)
LAYOUT = RowLayout(kinds_of("s", 4))
MIX = {"niah": 3.0, "niah_free": 0.5, "mqar": 1.5, "vt": 0.5, "quote": 1.0, "copy": 2.0, "lm": 0.1}
PLAN = TrainingPlan(stages=(TrainingStage(tokens=256, rows=8, steps=2000, rate=2e-3, end_rate=2e-3, mix=MIX),))


class TextPair(nn.Module):
    """A network and the summaries that were trained with it."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.network = Network(shape)
        self.summaries = SummaryRows(self.network)


class Joint(TrainingRun):
    """A run whose network is a pair."""

    layout = LAYOUT

    def _started(self, shape: NetworkShape) -> nn.Module:
        pair = TextPair(shape)
        summary_structure.initialise(pair.network, pair.summaries, self.plan.seed)
        return pair

    def _export(self, folder: Path) -> None:
        """A model folder that is served as it is, with its summary file."""
        parts = {name.removeprefix("network."): w for name, w in self.average.items() if name.startswith("network.")}
        export(parts, self.network.shape, self.tokenizer, folder)
        pair = TextPair(self.network.shape)
        pair.load_state_dict(self.average)
        save(folder / BESIDE, pair.summaries.tensors(), folder, self.layout, about={"seed": str(self.plan.seed)})

    def _loss(self, ids: Tensor, positions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        pair, share = self.network, len(ids) * 3 // 4
        first = read(pair.network, pair.summaries, ids[:share], self.layout, torch.bfloat16).hidden
        second = read(pair.network, None, ids[share:], None, torch.bfloat16).hidden
        chosen = pair.network.predict(torch.cat((first, second)), positions)
        each = F.cross_entropy(chosen, targets, reduction="none")
        return (each * weights).sum() / weights.sum()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.summary.joint", description=__doc__)
    parser.add_argument("--work", type=Path, default=MINI.parent / ".work" / NAME, help="folder of the checkpoint")
    parser.add_argument("--to", type=Path, default=MINI.parent / NAME, help="model folder to write")
    parser.add_argument("--seed", type=int, default=PLAN.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="half again as fast after a minute or two; needs g++")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    train(SHAPE, replace(PLAN, seed=args.seed), args.work, args.to, args.compile, Joint)


if __name__ == "__main__":
    main()

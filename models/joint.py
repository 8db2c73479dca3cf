"""Train a network and its summaries together, so that one set of weights reads with summaries and without.

Half of a batch's rows are read with summaries, the other half with the whole cache. Stop with Ctrl-C and start again:
the run goes on where it was.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import summary_structure
from models.network import Network, Shape
from models.summaries import Layout, Summaries, kinds_of, read
from models.train import Run


class Pair(nn.Module):
    """A network and the summaries that were trained with it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.network = Network(shape)
        self.summaries = Summaries(self.network)


class Joint(Run):
    layout = Layout(kinds_of("s", 4))

    def _started(self, shape: Shape) -> nn.Module:
        pair = Pair(shape)
        summary_structure.initialise(pair.network, pair.summaries, self.plan.seed)
        return pair

    def _loss(self, ids: Tensor, positions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        pair, half = self.network, len(ids) // 2
        first = read(pair.network, pair.summaries, ids[:half], self.layout, torch.bfloat16).hidden
        second = read(pair.network, None, ids[half:], None, torch.bfloat16).hidden
        chosen = pair.network.predict(torch.cat((first, second)), positions)
        each = F.cross_entropy(chosen, targets, reduction="none")
        return (each * weights).sum() / weights.sum()

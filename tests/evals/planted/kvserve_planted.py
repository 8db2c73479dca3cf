"""A sound policy, and the same with a mistake that an official release has made."""

from typing import ClassVar

import torch

from policies.keydiff import KeyDiff


class Ranked(KeyDiff):
    """Keep the highest scores."""

    name: ClassVar[str] = "ranked"


class Mistaken(KeyDiff):
    """Keep the slots where argsort is high: it gives the order, and is taken for the ranks."""

    name: ClassVar[str] = "mistaken"

    def select(self, view, keep):
        order = self.scores(view).argsort(dim=1, stable=True)
        return torch.stack([torch.where(row >= view.num_slots - keep)[0] for row in order])

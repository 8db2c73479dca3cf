"""Rows of training tokens: scenes packed to a fixed length, and the positions that carry loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np

from models.tasks.generators import TASKS
from models.tasks.scene import FORMS, World, tokens_of

PAD_ID = 0
SHARE = 0.4  # of all positions, how many carry loss; the vocabulary projection is a large part of a small model's cost
FILL_WEIGHT = 0.05  # loss weight of tokens that are no answer
SMALLEST = 48  # tokens below which no further scene is packed into a row


@dataclass(frozen=True)
class Batch:
    """``ids`` is ``(rows, tokens)``; the others ``(selected,)``: flat positions, the tokens after them, weights."""

    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def make_batch(world: World, mix: Mapping[str, float], rows: int, tokens: int, seed: str) -> Batch:
    """The same arguments give the same batch, so that a resumed run sees what it would have seen."""
    rng = Random(seed)
    made = [_row(rng, world, mix, tokens + 1) for _ in range(rows)]
    ids = np.array([row[0] for row in made], dtype=np.int64)
    answers = np.array([row[1] for row in made], dtype=bool)[:, 1:].ravel()
    targets = ids[:, 1:].ravel()
    chosen = _select(rng, answers, targets != PAD_ID, int(SHARE * rows * tokens))
    weights = np.where(answers[chosen], 1.0, FILL_WEIGHT) * (targets[chosen] != PAD_ID)
    return Batch(ids[:, :-1].copy(), chosen, targets[chosen], weights.astype(np.float32))


def _row(rng: Random, world: World, mix: Mapping[str, float], tokens: int) -> tuple[list[int], list[bool]]:
    """One scene that fills the row or, in three rows of ten, several shorter ones; the rest is padding."""
    ids: list[int] = []
    answers: list[bool] = []
    packed = rng.random() < 0.3
    left = dict(mix)
    while left and tokens - len(ids) >= SMALLEST:
        room = tokens - len(ids)
        size = rng.randint(SMALLEST, max(SMALLEST, room // 2)) if packed and room > 2 * SMALLEST else room
        task = rng.choices(list(left), list(left.values()))[0]
        del left[task]  # two scenes of one task in one row might contradict each other
        more_ids, more_answers = _scene(rng, world, task, size)
        if len(more_ids) > room:
            continue
        ids += more_ids
        answers += more_answers
    rest = tokens - len(ids)
    return ids + [PAD_ID] * rest, answers + [False] * rest


def _scene(rng: Random, world: World, task: str, size: int) -> tuple[list[int], list[bool]]:
    turns = {} if rng.random() < 0.8 else {"turns": 1}
    scene = TASKS[task](rng, world, size, **turns)
    form = rng.choice(FORMS) if scene.has_chat else "completion"
    return tokens_of(world.tokenizer, scene.told(form, rng))


def _select(rng: Random, answers: np.ndarray, real: np.ndarray, count: int) -> np.ndarray:
    """``count`` flat positions: answers first, then other text, then padding; at random within each."""
    order = np.random.default_rng(rng.getrandbits(63)).random(len(answers)) - 2.0 * answers + 2.0 * ~real
    return np.sort(np.argpartition(order, count - 1)[:count])

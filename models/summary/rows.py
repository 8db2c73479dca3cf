"""Rows to train summaries on: the family's generated tasks, or windows of any text."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np

from models import MINI
from models.tasks import prose
from models.tasks.scene import World
from models.training.rows import SHARE, Batch, make_batch
from models.training.stages import LATE_MIX

Rows = Callable[[int], Batch]


class TextError(ValueError):
    """There is not enough text, or no tokenizer to read it with."""


def rows_of(folder: Path, text: Path | None, rows: int, tokens: int, seed: int) -> tuple[Rows, str]:
    """Step to batch, and what it is made of. Raises TextError."""
    path = folder / "tokenizer.json"
    if text is None and path.is_file() and path.read_bytes() == (MINI / "tokenizer.json").read_bytes():
        return _generated(folder, rows, tokens, seed), "generated tasks"
    ids = _ids(folder, text)
    if len(ids) <= tokens:
        raise TextError(f"the text has {len(ids)} tokens; more than {tokens} are needed")
    return _windows(ids, rows, tokens, seed), text.name if text else "Python documentation"


def _generated(folder: Path, rows: int, tokens: int, seed: int) -> Rows:
    from tokenizers import Tokenizer

    world = World(Tokenizer.from_file(str(folder / "tokenizer.json")), held_out=False)
    return lambda step: make_batch(world, LATE_MIX, rows, tokens, f"summaries/{seed}/{step}")


def _ids(folder: Path, text: Path | None) -> np.ndarray:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise TextError(f"{folder} has no tokenizer")  # transformers would make an empty one
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise TextError(f"{folder} has no tokenizer that can be read: {str(error).splitlines()[0]}") from None
    if text is None:
        words = " ".join(islice(prose.sentences(held_out=False), 20_000))
    else:
        try:
            words = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"--text {text}: {error}") from None
    return np.array(tokenizer.encode(words, add_special_tokens=False), dtype=np.int64)


def _windows(ids: np.ndarray, rows: int, tokens: int, seed: int) -> Rows:
    """Windows at random places; loss at a random share of their positions."""

    def batch(step: int) -> Batch:
        rng = Random(f"summaries/{seed}/{step}")
        cut = np.stack([ids[start : start + tokens + 1] for start in rng.choices(range(len(ids) - tokens), k=rows)])
        chosen = np.array(sorted(rng.sample(range(rows * tokens), max(1, int(SHARE * rows * tokens)))))
        targets = cut[:, 1:].ravel()[chosen]
        return Batch(cut[:, :-1].copy(), chosen, targets, np.ones(len(chosen), dtype=np.float32))

    return batch

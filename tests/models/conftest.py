"""Fixtures for the shipped model. The repository root is put on the path, so that the room's tests run on their own."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def mini() -> Path:
    return ROOT / "models" / "mini"


@pytest.fixture(scope="session")
def tokenizer(mini):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(mini)


@pytest.fixture(scope="session")
def world(tokenizer):
    from models.tasks.scene import World

    return World(tokenizer, held_out=True)

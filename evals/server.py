"""A server of one's own, with the policies that exist for evaluation only."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from measuring import server
from models.fetch import located

PLUGINS = Path(__file__).parent / "plugin"
"""On the server's import path: the package whose entry points name the oracle."""
BLOCK = 32
FLAGS = ("--enforce-eager", "--block-size", str(BLOCK), "--max-num-seqs", "64", "--max-model-len", "4096")


def layers_of(model: str) -> int:
    """Layers of a folder or a fetched model: a group for each lets every layer choose its own budget."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(located(model)).get_text_config().num_hidden_layers)


@contextmanager
def serving(flags: Sequence[str], paths: Sequence[Path] = (PLUGINS,), **environ: str) -> Iterator[str]:
    """Base address of a server that runs inside the block; `paths` go before the others that it imports from.

    Raises ServerDied.
    """
    path = os.pathsep.join([*map(str, paths), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environ["PYTHONPATH"] = path.rstrip(os.pathsep)
    with tempfile.TemporaryDirectory() as folder, server.serving([*FLAGS, *flags], Path(folder) / "log", environ) as up:
        yield up.url

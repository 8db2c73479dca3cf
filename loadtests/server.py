"""A server with a pool of a chosen size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.sizes import BLOCK
from measuring import server
from measuring.server import Server

MODEL = "kvserve-mini"
FLAGS = ("mini", "--enforce-eager", "--block-size", str(BLOCK))


@contextmanager
def serving(pool: int, longest: int, log: Path) -> Iterator[Server]:
    """A server of the mini model with `pool` usable blocks, once it is healthy. Raises ServerDied.

    longest: tokens that it accepts per request.
    """
    sizes = ("--max-model-len", str(longest), "--num-gpu-blocks-override", str(pool + 1))  # one is vLLM's null block
    with server.serving([*FLAGS, *sizes], log, {"VLLM_CPU_KVCACHE_SPACE": "1"}) as up:
        yield up

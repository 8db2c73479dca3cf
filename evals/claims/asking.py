"""Servers are started one after the other, and each is asked all that any claim wants to know of it."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from evals.claims.ask import Ask, ServedModel
from evals.claims.claim import Claim
from evals.endpoint import Endpoint
from evals.journal import EvalJournal
from evals.runner import Runner
from evals.server import serving

DTYPE, REQUESTS_AT_ONCE = "float32", 48
CACHE_GB = "2"  # half a million tokens: every prompt of a claim stays in the prefix cache
BESIDE = "kvserve/calibration.safetensors"


def asks_of(claims: Sequence[Claim], served: ServedModel) -> list[Ask]:
    """What these claims want to know of a server, each once."""
    return list(dict.fromkeys(ask for claim in claims for ask in claim.asks if ask.served == served))


def path_of(out: Path, served: ServedModel) -> Path:
    """Where a server's answers are kept until the table is written."""
    return out.with_name(f"{out.stem}-{served.name.replace(', ', '-').replace(' ', '-')}.jsonl")


def settings(served: ServedModel, seed: int) -> dict[str, Any]:
    """What must be the same for answers to count."""
    return {"model": served.model, "flags": list(served.flags), "dtype": DTYPE, "seed": seed}


def missing(book: EvalJournal, ask: Ask, items: int) -> bool:
    """Whether anything of it has not been answered yet."""
    numbers = range(ask.items(items))
    return any(
        not book.has(cell, number, how) for cell in ask.cells() for how in ask.section.passes for number in numbers
    )


def fill(book: EvalJournal, served: ServedModel, asks: Sequence[Ask], items: int, seed: int) -> None:
    """Ask what is missing; starts no server if nothing is."""
    todo = [ask for ask in asks if missing(book, ask, items)]
    if not todo:
        return
    print(f"evals.claims: starting a server: {served.name}", file=sys.stderr)
    space = {"VLLM_CPU_KVCACHE_SPACE": CACHE_GB}
    with _calibrated(served) as flags, serving([*flags, *served.flags], (), **space) as url:
        asyncio.run(_ask(book, served, todo, url, items, seed))


async def _ask(book: EvalJournal, served: ServedModel, todo: Sequence[Ask], url: str, items: int, seed: int) -> None:
    endpoint = Endpoint(url, "")
    endpoint.model = await endpoint.served()
    cards = await endpoint.policies()
    try:
        for number, ask in enumerate(todo, 1):
            title = f"{served.name} {number}/{len(todo)}, {ask.section.tasks[0]}"
            runner = Runner(
                [ask.section],
                ask.contestants,
                cards,
                endpoint,
                book,
                ask.items(items),
                seed,
                REQUESTS_AT_ONCE,
                None,
                title,
            )
            await runner.run()
    finally:
        await endpoint.close()


@contextmanager
def _calibrated(served: ServedModel) -> Iterator[list[str]]:
    """Flags for the model, with a file of query statistics made now if none lies beside it."""
    layers = AutoConfig.from_pretrained(served.folder).num_hidden_layers
    flags = [served.folder, "--kv-groups", str(layers), "--dtype", DTYPE]
    if (Path(served.folder) / BESIDE).is_file():
        yield flags
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.safetensors"
        command = [sys.executable, "-m", "server.cli.main", "calibrate", served.folder, "-o", str(path)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
        yield [*flags, "--kv-calibration", str(path)]

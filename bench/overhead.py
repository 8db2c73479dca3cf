"""(a) Decode steps of stock vLLM and of kvserve with no policy in the batch, taking turns.

Each engine lives in a process of its own, stock ones without kvserve's plug-in. Only one works at a time;
turns last a few steps and their order swaps from pair to pair, so that drift and neighbours hit all alike.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench.sizes import BLOCK, BenchSizes
from measuring.repetitions import Repetitions
from measuring.spread import paired_ratio

PART = "a"
STOCK, KV, CONTROL = "stock", "kvserve", "stock again"

PATIENCE = 10
"""Seconds that a child gets to end by itself."""


class TimedTurn(NamedTuple):
    wall: list[float]  # seconds of each step
    cpu: float  # seconds of this process over all of them


def _serve(pipe: Connection, kv: bool, model: Path, sizes: BenchSizes) -> None:
    """Child: ("begin", seed) starts the requests afresh, ("turn", n) steps them, None ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if not kv:
        os.environ["VLLM_PLUGINS"] = ""
    from bench.engine import BenchEngine, prompt

    length = sizes.overhead_prompt + sizes.overhead_block * (sizes.overhead_pairs + 1) + BLOCK
    engine = BenchEngine(model, kv=kv, blocks=sizes.batch * (length // BLOCK + 1), max_len=length, chunk=sizes.chunk)
    pipe.send("ready")
    while (command := pipe.recv()) is not None:
        verb, value = command
        if verb == "begin":
            engine.drop()
            for i in range(sizes.batch):
                engine.add(prompt(sizes.overhead_prompt, (value, i)), None, length - sizes.overhead_prompt)
            engine.prefill()
            value = sizes.overhead_block
        pipe.send(timed(engine, value))
    pipe.close()


def timed(engine: Any, steps: int) -> TimedTurn:
    cpu = time.process_time()
    return TimedTurn(engine.steps(steps), time.process_time() - cpu)


class Rival:
    """One engine in a child process, which runs `serve` with its end of a pipe and what it is given."""

    def __init__(self, serve: Callable[..., None], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=serve, args=(theirs, *given), daemon=True)
        self._child.start()
        theirs.close()

    def wait(self) -> None:
        """Until the engine has started; raises EOFError if it died."""
        self._pipe.recv()

    def ask(self, verb: str, value: Any) -> Any:
        """What the child answers: of a turn that it takes, a TimedTurn."""
        self._pipe.send((verb, value))
        return self._pipe.recv()

    def end(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._child.join(PATIENCE)
        self._child.terminate()


def measure(sizes: BenchSizes, repeats: int, model: Path, book: Repetitions) -> None:
    names = [STOCK, KV, *([CONTROL] if sizes.overhead_control else [])]
    rivals = {name: Rival(_serve, name == KV, model, sizes) for name in names}
    try:
        for rival in rivals.values():
            rival.wait()
        for repetition in range(repeats):
            _repetition(repetition, sizes, rivals, book)
    finally:
        for rival in rivals.values():
            rival.end()


def _repetition(repetition: int, sizes: BenchSizes, rivals: dict[str, Rival], book: Repetitions) -> None:
    turns: dict[str, list[TimedTurn]] = {name: [] for name in rivals}
    for rival in rivals.values():
        rival.ask("begin", repetition)
    for pair in range(sizes.overhead_pairs):
        for name in list(rivals)[:: 1 if pair % 2 == 0 else -1]:
            turns[name].append(rivals[name].ask("turn", sizes.overhead_block))
    walls = {name: [statistics.median(turn.wall) for turn in taken] for name, taken in turns.items()}
    for name, taken in turns.items():
        step = statistics.median(second for turn in taken for second in turn.wall)
        book.add(
            PART,
            name,
            step_ms=1e3 * step,
            tokens_per_s=sizes.batch / step,
            ratio=paired_ratio(walls[name], walls[STOCK]),
            cpu_ratio=paired_ratio([t.cpu for t in taken], [t.cpu for t in turns[STOCK]]),
        )

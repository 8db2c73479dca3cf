"""(h) Decode steps of many requests at once: stock vLLM, and kvserve with none, half or all of them compressed.

The model is tiny, so that what counts is the time that Python takes in scheduler and worker. Engines take turns as in
(a). Prompts differ in length, so that compactions fall due in every few steps, as they do in a server.
"""

import os
import signal
import statistics
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from bench.overhead import CONTROL, KV, STOCK, Rival, TimedTurn, timed
from bench.sizes import BLOCK, BenchSizes
from measuring.repetitions import Repetitions
from measuring.spread import paired_ratio

PART = "h"
CALLED_STEPS = 8
"""Steps in which Python calls are counted, which slows them down: not those that are timed."""


class Crowd(NamedTuple):
    """What an engine is asked to decode; share: of the requests that are compressed, None for stock vLLM."""

    share: float | None = None
    groups: int = 1
    policy: str = "streaming"


CASES: Mapping[str, Crowd] = {
    STOCK: Crowd(),
    f"{KV}, none": Crowd(0.0),
    f"{KV}, half": Crowd(0.5),
    f"{KV}, all": Crowd(1.0),
    f"{KV}, all, 2 groups": Crowd(1.0, 2),
    f"{KV}, all read queries": Crowd(1.0, policy="snapkv"),
    CONTROL: Crowd(),
}


def _serve(pipe: Connection, crowd: Crowd, model: Path, sizes: BenchSizes) -> None:
    """Child: ("begin", seed) starts the requests afresh, ("turn", n) steps them, ("calls", n) counts, None ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if crowd.share is None:
        os.environ["VLLM_PLUGINS"] = ""
    from bench.engine import BenchEngine

    length = sizes.width_prompt + sizes.width_slack + sizes.width_block * (sizes.width_pairs + 2) + CALLED_STEPS + BLOCK
    blocks = crowd.groups * sizes.width * (length // BLOCK + 1)
    engine = BenchEngine(
        model, kv=crowd.share is not None, groups=crowd.groups, blocks=blocks, max_len=length, chunk=4096,
        max_num_seqs=sizes.width,
    )  # fmt: skip
    pipe.send("ready")
    while (command := pipe.recv()) is not None:
        verb, value = command
        if verb == "calls":
            pipe.send(_calls(engine, value))
            continue
        if verb == "begin":
            engine.drop()
            _fill(engine, crowd, length, value, sizes)
            value = sizes.width_block
        pipe.send(timed(engine, value))
    pipe.close()


def _fill(engine: Any, crowd: Crowd, length: int, seed: int, sizes: BenchSizes) -> None:
    from bench.engine import prompt

    policy = {"name": crowd.policy, "budget": sizes.width_prompt, "slack": sizes.width_slack}
    compressed = int(sizes.width * (crowd.share or 0.0))
    for i in range(sizes.width):
        tokens = prompt(sizes.width_prompt + i % sizes.width_slack, (seed, i))
        engine.add(tokens, policy if i < compressed else None, length - len(tokens))
    engine.prefill()


def _calls(engine: Any, steps: int) -> int:
    """Python functions entered in one step, the median of some."""
    counted = [0]

    def count(frame: FrameType, event: str, argument: Any) -> None:
        counted[0] += event == "call"

    found = []
    for _ in range(steps):
        counted[0] = 0
        sys.setprofile(count)
        engine.step()
        sys.setprofile(None)
        found.append(counted[0])
    return int(statistics.median(found))


def measure(sizes: BenchSizes, repeats: int, model: Path, book: Repetitions) -> None:
    cases = {name: crowd for name, crowd in CASES.items() if name != CONTROL or sizes.overhead_control}
    rivals = {name: Rival(_serve, crowd, model, sizes) for name, crowd in cases.items()}
    try:
        for rival in rivals.values():
            rival.wait()
        for repetition in range(repeats):
            _repetition(repetition, sizes, rivals, book)
    finally:
        for rival in rivals.values():
            rival.end()


def _repetition(repetition: int, sizes: BenchSizes, rivals: Mapping[str, Rival], book: Repetitions) -> None:
    turns: dict[str, list[TimedTurn]] = {name: [] for name in rivals}
    for rival in rivals.values():
        rival.ask("begin", repetition)
    for pair in range(sizes.width_pairs):
        for name in list(rivals)[:: 1 if pair % 2 == 0 else -1]:
            turns[name].append(rivals[name].ask("turn", sizes.width_block))
    calls = {name: rival.ask("calls", CALLED_STEPS) for name, rival in rivals.items()}
    walls = {name: [statistics.fmean(turn.wall) for turn in taken] for name, taken in turns.items()}
    for name, taken in turns.items():
        step = statistics.median(walls[name])
        book.add(
            PART,
            name,
            step_ms=1e3 * step,
            tokens_per_s=sizes.width / step,
            ratio=paired_ratio(walls[name], walls[STOCK]),
            cpu_ratio=paired_ratio([t.cpu for t in taken], [t.cpu for t in turns[STOCK]]),
            calls=calls[name],
        )

"""(b) of `python -m bench.cuda`: decode steps of many requests, engines taking turns, and a batch's compaction."""

import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench.model import configure
from bench.overhead import KV, STOCK, Rival
from bench.sizes import BLOCK
from measuring.spread import paired_ratio

STEPS, PAIRS, WARM = 16, 10, 8
"""Decode steps of a turn, turns of each engine, and steps before the first one."""


class GpuShape(NamedTuple):
    """Of a model with random weights."""

    layers: int
    heads: int  # KV heads
    hidden: int
    head: int
    group: int
    inner: int


SHAPES = {"0.5B": GpuShape(24, 2, 896, 64, 7, 4864), "3B": GpuShape(36, 2, 2048, 128, 8, 11008)}
"""Those of Qwen2.5, with a vocabulary of 2,048 and normalised keys."""

CASES: dict[str, Any] = {
    STOCK: None,
    f"{KV}, none": None,
    f"{KV}, all keydiff:0.25": {"name": "keydiff", "budget": 0.25},
    f"{KV}, all snapkv:0.25": {"name": "snapkv", "budget": 0.25},
    f"{STOCK} again": None,
}


def heading(chosen: Any) -> str:
    compiled = "compiled" if chosen.compile else "not compiled"
    return (
        f"(b) {chosen.requests} requests of {chosen.prompt} tokens, random weights in the shape of {chosen.shape}, "
        f"bfloat16, {chosen.backend}, {compiled}, CUDA graphs of decode steps. Mean decode step of {PAIRS} turns of "
        f"{STEPS}, median of the turns; ratio to stock, paired. Prompts: seconds until all are read and compacted, "
        f"and {WARM} steps; compaction: of all requests, seconds in the worker."
    )


def measure(chosen: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[chosen.shape]
        given = (configure(Path(folder), *shape), shape, settings(chosen), chosen.requests, chosen.prompt)
        rivals = {name: Rival(_serve, not name.startswith(STOCK), policy, *given) for name, policy in CASES.items()}
        try:
            for rival in rivals.values():
                rival.wait()
            begun = {name: [rival.ask("begin", seed) for seed in range(2)][-1] for name, rival in rivals.items()}
            turns: dict[str, list[float]] = {name: [] for name in rivals}
            for pair in range(PAIRS):
                for name in list(rivals)[:: 1 if pair % 2 == 0 else -1]:
                    turns[name].append(rivals[name].ask("turn", STEPS))
        finally:
            for rival in rivals.values():
                rival.end()
    return [
        {"case": name, "step ms": 1e3 * statistics.median(turns[name]),
         "ratio": paired_ratio(turns[name], turns[STOCK]), **begun[name]}
        for name in rivals
    ]  # fmt: skip


def settings(chosen: Any) -> dict[str, Any]:
    """Of vLLM; without compilation its default mode has no graphs, and FULL_DECODE_ONLY needs none."""
    graphs = {} if chosen.compile else {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return {"attention_config": {"backend": chosen.backend}, "compilation_config": graphs}


def _serve(
    pipe: Connection,
    kv: bool,
    policy: Any,
    model: Path,
    shape: GpuShape,
    more: dict[str, Any],
    requests: int,
    prompt: int,
) -> None:
    """Child: ("begin", seed) starts the requests afresh, ("turn", n) gives the mean of n steps, None ends."""
    if not kv:
        os.environ["VLLM_PLUGINS"] = ""
    from bench.engine import BenchEngine

    length = prompt + outputs(requests)
    blocks = requests * (length // BLOCK + 1)
    memory = blocks * BLOCK * shape.layers * shape.heads * shape.head * 4
    engine = BenchEngine(
        model, kv=kv, blocks=blocks, max_len=length, chunk=8192, max_num_seqs=requests, dtype="bfloat16",
        enforce_eager=False, kv_cache_memory_bytes=memory + 2**28,
        enable_prefix_caching=False, **more,
    )  # fmt: skip
    spent = _timed_runs(engine.compactor) if kv else []
    pipe.send("ready")
    while (command := pipe.recv()) is not None:
        verb, value = command
        pipe.send(_begin(engine, policy, requests, prompt, value, spent) if verb == "begin" else _mean(engine, value))
    pipe.close()


def _begin(engine: Any, policy: Any, requests: int, length: int, seed: int, spent: list[float]) -> dict[str, float]:
    from bench.engine import prompt

    engine.drop()
    spent.clear()
    for i in range(requests):
        engine.add(prompt(length, (seed, i)), policy, outputs(requests))
    seconds = engine.prefill() + sum(engine.steps(WARM))  # the last prompts are compacted by the steps after
    return {"prompt s": seconds, "compaction s": sum(spent), "plans": len(spent)} if spent else {"prompt s": seconds}


def _mean(engine: Any, steps: int) -> float:
    return statistics.fmean(engine.steps(steps))


def _timed_runs(compactor: Any) -> list[float]:
    """Seconds of each request's compaction, the GPU's work included."""
    import torch

    spent: list[float] = []
    run = compactor.run

    def timed(plans: Any) -> None:
        torch.cuda.synchronize()
        started = time.perf_counter()
        run(plans)
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)

    compactor.run = timed
    return spent


def outputs(requests: int) -> int:
    """Tokens of each request: the first one decodes while prompts are read, several of them in a step."""
    return requests + WARM + STEPS * (PAIRS + 1)

"""Starting engines in this process and looking inside them."""

import atexit
import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakSet

from vllm import LLM, SamplingParams
from vllm.model_executor.models.transformers import base as backend
from vllm.platforms.cpu import CpuPlatform

from kvserve.policy import registry
from kvserve.policy.errors import PolicyError
from models import MINI

BLOCK = 32

# vLLM's Transformers backend prepares transformers' own classes for compilation. These engines do not compile, and
# whoever makes such a model later, in the same process, would be asked for an engine's configuration.
backend.Base._decorate_cls_for_torch_compile = lambda *args, **kwargs: None  # type: ignore[method-assign]

# While an engine starts and stops vLLM looks through all objects for garbage six times, and through all modules for
# kernels to replace: most of the time that an engine takes which is asked little. Here what is there while no engine is
# stays out of the collector's sight for good, and the kernels are replaced once.
_freeze, _engines = gc.freeze, WeakSet[LLM]()
atexit.register(gc.unfreeze)
gc.freeze = gc.unfreeze = lambda: None
CpuPlatform.register_triton_kernel_overrides = staticmethod(  # type: ignore[method-assign]
    cache(CpuPlatform.register_triton_kernel_overrides)
)


def start(
    kv: bool = True, *, blocks: int = 1024, options: dict[str, Any] | None = None, model: Any = MINI, **engine: Any
) -> LLM:
    """A vLLM engine on the embedded model in float32, with a pool of exactly `blocks` blocks; kv=False: stock."""
    settings: dict[str, Any] = {
        "model": str(model),
        "dtype": "float32",
        "max_model_len": 4096,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "enforce_eager": True,
        "block_size": BLOCK,
        "num_gpu_blocks_override": blocks,
        "disable_log_stats": True,
        **engine,
    }
    if kv:
        settings |= {
            "scheduler_cls": "kvserve.engine.scheduler.KVScheduler",
            "worker_cls": "kvserve.engine.worker.KVWorker",
            "additional_config": {"kvserve": {"trace": True, **(options or {})}},
        }
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    gc.collect()
    if not _engines:
        _freeze()
    llm = LLM(**settings)
    _engines.add(llm)
    return llm


def stop(llm: LLM) -> None:
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()


def tokens(count: int, seed: int = 0) -> list[int]:
    """A prompt of random tokens of the embedded model's vocabulary, without special ones."""
    return [random.Random(f"{seed}/{i}").randrange(10, 2000) for i in range(count)]


def params(policy: Any = None, generate: int = 40, **more: Any) -> SamplingParams:
    """Greedy, with log-probabilities, not stopped by EOS."""
    extra = {"kv_policy": policy, "kv_call": "test"} if policy is not None else None
    return SamplingParams(
        **{"temperature": 0, "max_tokens": generate, "ignore_eos": True, "logprobs": 1, "extra_args": extra, **more}
    )


def generate(
    llm: LLM, prompts: list[list[int]], policies: list[Any], length: int = 40, *, warm: bool = False
) -> list[Any]:
    """One batch; returns the RequestOutputs. The prefix cache is emptied before, unless `warm`."""
    if not warm:
        assert llm.reset_prefix_cache()
    return llm.generate(
        [{"prompt_token_ids": p} for p in prompts], [params(p, length) for p in policies], use_tqdm=False
    )


def policies(llm: LLM, budgeted: bool = True) -> list[dict[str, Any]]:
    """Every compressing policy that this engine can serve, at the granularity of its layer groups if need be.

    budgeted: only those of which a request chooses how much they keep.
    """
    found = []
    for name, policy in registry.installed().items():
        for fields in ({}, {"granularity": "group"} if "granularity" in policy.model_fields else {}):
            try:
                policy(**fields).check(scheduler(llm).kv.facts)
            except PolicyError:
                continue
            found += [{"name": name, **fields}] if policy.compresses and (policy.budgeted or not budgeted) else []
            break
    return found


def said(output: Any) -> tuple[list[int], list[float]]:
    """Tokens and the log-probabilities of them."""
    only = output.outputs[0]
    ids = list(only.token_ids)
    return ids, [step[i].logprob for step, i in zip(only.logprobs, ids, strict=True)]


def outcome(output: Any) -> dict[str, Any]:
    """The `usage.kv_cache` record of a finished request."""
    return output.kv_transfer_params["kvserve"]


def scheduler(llm: LLM) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def runner(llm: LLM) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def is_v2(runner: Any) -> bool:
    return hasattr(runner, "req_states")


def block_rows(runner: Any) -> dict[str, Callable[[int], list[list[int]]]]:
    """By request: a group -> its block ids, in each of the places where this model runner keeps them."""
    if is_v2(runner):
        return {req_id: partial(_rows_of_v2, runner, row) for req_id, row in runner.req_states.req_id_to_index.items()}
    return {
        req_id: partial(_rows_of_v1, runner, req_id, row) for req_id, row in runner.input_batch.req_id_to_index.items()
    }


def _rows_of_v1(runner: Any, req_id: str, row: int, group: int) -> list[list[int]]:
    table = runner.input_batch.block_table[group]
    written = table.block_table.np[row, : table.num_blocks_per_row[row]].tolist()
    return [runner.requests[req_id].block_ids[group], written]


def _rows_of_v2(runner: Any, row: int, group: int) -> list[list[int]]:
    tables = runner.block_tables
    return [tables.block_tables[group].gpu[row, : tables.num_blocks.np[group, row]].tolist()]


def free_blocks(llm: LLM) -> int:
    return scheduler(llm).kv_cache_manager.block_pool.get_num_free_blocks()


def selections(llm: LLM) -> list[Any]:
    """All selections since the last call, from the worker."""
    kv = runner(llm).kv
    taken, kv.selections = kv.selections, []
    return taken


@contextmanager
def scheduling(asynchronous: bool) -> Iterator[None]:
    """Engines started inside schedule asynchronously, which vLLM switches off on CPU as not worth it."""
    stock = CpuPlatform.__dict__["check_and_update_config"]

    def kept(cls: Any, vllm_config: Any) -> None:
        stock.__func__(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = asynchronous

    if asynchronous:
        CpuPlatform.check_and_update_config = classmethod(kept)  # type: ignore[method-assign]
    try:
        yield
    finally:
        CpuPlatform.check_and_update_config = stock  # type: ignore[method-assign]

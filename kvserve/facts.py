"""What a started server can hold, read off vLLM's configuration; the same in every process."""

from typing import Any

from kvserve import summary_file
from kvserve.calibration import load_for
from kvserve.options import KVOptions
from kvserve.policy import Facts


def facts_of(vllm_config: Any, num_blocks: int | None = None) -> Facts:
    """Facts for `Policy.check` and admission; valid once the engine has sized its cache.

    num_blocks: blocks of this engine's pool; None in an API process, which knows only the sum over its engines.
    """
    cache, parallel = vllm_config.cache_config, vllm_config.parallel_config
    groups = KVOptions.of(vllm_config).groups
    calibration = load_for(vllm_config)
    blocks = num_blocks or (cache.num_gpu_blocks or 0) // _engines(parallel)
    return Facts(
        num_layers=vllm_config.model_config.get_num_layers(parallel),
        groups=groups,
        block_size=cache.block_size,
        pool_tokens=max(0, blocks - 1) // groups * cache.block_size,
        max_model_len=vllm_config.model_config.max_model_len,
        chunk=vllm_config.scheduler_config.max_num_batched_tokens,
        tensor_parallel=parallel.tensor_parallel_size,
        calibrated=calibration.parts if calibration else (),
        rotary=_rotary(vllm_config.model_config.hf_text_config),
        summaries=summary_file.about_for(vllm_config),
    )


def _engines(parallel: Any) -> int:
    """How many an API process talks to: all that are data-parallel, or the local ones where others balance the load."""
    local = getattr(parallel, "local_engines_only", False)
    return max(1, int(parallel.data_parallel_size_local if local else parallel.data_parallel_size))


def _rotary(config: Any) -> bool:
    """Whether positions are one rotation by one number, not M-RoPE's several, ALiBi or learned ones."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    has = bool(parameters) or getattr(config, "rope_theta", None) is not None
    return has and "mrope_section" not in parameters

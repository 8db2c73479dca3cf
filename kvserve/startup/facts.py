"""What a started server can hold: worked out once, by the engine, and the same in every process.

Only the engine knows the loaded model and the groups that vLLM made of its layers. Its API processes get the facts
with vLLM's start-up handshake; see kvserve.startup.handshake.
"""

from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.kv_cache_interface import KVCacheGroupSpec, get_kv_cache_spec_kind, iter_layer_specs

from kvserve.engine.spec import compressible, is_compressible, note
from kvserve.evidence.calibration import load_for
from kvserve.policy.types import Facts, OtherGroup
from kvserve.startup.guard import UnsupportedError
from kvserve.summary import file as summary_file

PLACE = "kv_facts"


def facts_of(vllm_config: Any) -> Facts:
    """Facts for `Policy.check` and admission, in any process once the engine is up. Raises UnsupportedError."""
    known: Facts | None = vars(vllm_config).get(PLACE)
    if known is None:
        raise UnsupportedError("the engine has not said what it can hold; it must run with kvserve and be up")
    return known


def keep(vllm_config: Any, facts: Facts) -> None:
    """Make these the facts of this process. Of several engines the one that holds least counts: any may be asked."""
    known: Facts | None = vars(vllm_config).get(PLACE)
    if known is None or (facts.pool_blocks, facts.pool_tokens) < (known.pool_blocks, known.pool_tokens):
        setattr(vllm_config, PLACE, facts)


def known(vllm_config: Any, kv_cache_config: Any) -> Facts:
    """The facts of this process's engine, made if nobody has yet. For workers, which may have the scheduler beside."""
    if PLACE not in vars(vllm_config):
        keep(vllm_config, made_of(vllm_config, kv_cache_config))
    return facts_of(vllm_config)


def made_of(vllm_config: Any, kv_cache_config: Any) -> Facts:
    """The facts of one engine, from the groups of layers that it made."""
    parallel, max_model_len = vllm_config.parallel_config, vllm_config.model_config.max_model_len
    groups = [g for g in kv_cache_config.kv_cache_groups if is_compressible(g.kv_cache_spec)]
    others = [g for g in kv_cache_config.kv_cache_groups if g not in groups]
    sizes = tuple(g.kv_cache_spec.block_size for g in groups)
    calibration = load_for(vllm_config)
    usable = max(0, kv_cache_config.num_blocks - 1)  # vLLM keeps one as the null block
    return Facts(
        num_layers=sum(len(note(g.kv_cache_spec, "layers")) for g in groups),
        groups=len(groups),
        block_size=min(sizes, default=vllm_config.cache_config.block_size),
        pool_tokens=usable // len(groups) * min(sizes) if groups else max_model_len,
        max_model_len=max_model_len,
        chunk=vllm_config.scheduler_config.max_num_batched_tokens,
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
        calibrated=calibration.parts if calibration else (),
        rope_problem=next((note(g.kv_cache_spec, "rope_problem") for g in groups), None),
        output_problem=next((note(g.kv_cache_spec, "output_problem") for g in groups), None),
        unrotated=next((note(g.kv_cache_spec, "unrotated") for g in groups), 0),
        mrope=bool(vllm_config.model_config.uses_mrope),
        picture_spans=bool(vllm_config.model_config.is_mm_prefix_lm),
        summaries=summary_file.about_for(vllm_config),
        pool_blocks=usable,
        block_sizes=sizes,
        side_pass_problem=_side_pass_problem(vllm_config, others),
        share_problem=_share_problem(vllm_config, others),
        other_groups=tuple(_other(g, vllm_config) for g in others),
        drafts=drafts_of(vllm_config),
        bundling=next((note(g.kv_cache_spec, "bundling") for g in groups), ""),
    )


def _side_pass_problem(vllm_config: Any, others: list[KVCacheGroupSpec]) -> str | None:
    """Why this server's prompts cannot be repeated: see kvserve.evidence.repeat."""
    of_draft_models = [g for g in others if all(map(compressible, iter_layer_specs(g.kv_cache_spec)))]
    if len(others) > len(of_draft_models):
        return "this model has layers whose caches are not compressed, such as those with a sliding window"
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        return "this server has the model's layers on several pipeline stages"
    if vllm_config.lora_config is not None:
        return "the server was started with --enable-lora"
    if vllm_config.model_config.skip_tokenizer_init:
        return "the server was started with --skip-tokenizer-init"
    return None


def _share_problem(vllm_config: Any, others: list[KVCacheGroupSpec]) -> str | None:
    """Why this server's compressed prefixes cannot be shared: see kvserve.engine.prefixes."""
    if not vllm_config.cache_config.enable_prefix_caching:
        return "the server was started without prefix caching (--no-enable-prefix-caching)"
    if others:
        return (
            "this server has layers whose caches are not compressed: those of a draft model, or with a sliding window"
        )
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        return "this server has the model's layers on several pipeline stages"
    return None


def drafts_of(vllm_config: Any) -> int:
    """Tokens that speculative decoding may try in a step, of each request; 0 without it."""
    speculative = vllm_config.speculative_config
    return 0 if speculative is None else int(speculative.num_speculative_tokens)


def kinds_of(vllm_config: Any) -> tuple[str, ...]:
    """Kinds of the model's layers, if their caches must be kept apart: see `kvserve.engine.spec.tagged`."""
    about = summary_file.about_for(vllm_config)
    apart = about is not None and vllm_config.parallel_config.pipeline_parallel_size == 1  # else no summaries are made
    return about.layers if about and apart else ()


def _other(group: KVCacheGroupSpec, vllm_config: Any) -> OtherGroup:
    spec = group.kv_cache_spec
    return OtherGroup(
        kind=get_kv_cache_spec_kind(spec).value,
        block_size=spec.block_size,
        most_blocks=cdiv(spec.max_memory_usage_bytes(vllm_config), spec.page_size_bytes),
    )

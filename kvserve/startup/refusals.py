"""The one table of what kvserve cannot serve, whatever the request: start-up options and kinds of models, with reasons.

Read before the engine starts (`kvserve serve`, from arguments and the model's configuration file), by `kvserve doctor`
(from the configuration file alone), and in the engine (from vLLM's configuration, however it was started). `asked`,
`described` and `started` say the same of the same server; docs/models.md prints the tables.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvserve.startup import connectors

ALIBI = ("bloom", "step1")
"""Model types that vLLM serves with ALiBi and whose configuration does not say so; Falcon's does."""
FORMATS = ("nvfp4", "turboquant", "ultraquant")
"""KV-cache dtypes, by how they begin, whose scales are not stored with the token."""


@dataclass(frozen=True)
class Start:
    """How a server is started, as far as it decides whether kvserve can serve at all."""

    model: Mapping[str, Any] = field(default_factory=dict)  # the Hugging Face configuration, that of the text in it
    drafting: str | None = None  # method of speculative decoding, "" if vLLM is to find it out
    connector: str | None = None  # why the KV connector, if there is one, cannot be served
    decode_context: int = 1  # workers among which context parallelism splits a sequence
    prefill_context: int = 1
    pipeline: int = 1
    launched: bool = False  # from outside, each worker with a scheduler of its own
    ubatching: bool = False
    pooling: bool = False
    cache_dtype: str = "auto"
    unified_cache: bool = False  # --disable-hybrid-kv-cache-manager
    prompts_in_graphs: bool = False  # CUDA graphs of whole steps also where prompts are read

    @property
    def mixed(self) -> bool:
        """Whether some layers have full attention and others do not, as far as the configuration says."""
        return "full_attention" in self.kinds and len(self.kinds) > 1

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of layers, if the configuration names them."""
        return frozenset(self.model.get("layer_types") or ())

    @property
    def windowed(self) -> bool:
        """Whether all layers have a sliding window."""
        window = self.model.get("sliding_window") and self.model.get("use_sliding_window", True)
        return bool(window) and "full_attention" not in self.kinds


DRAFTING = ("ngram", "draft_model", "eagle", "eagle3", "mtp")
"""Methods of speculative decoding that are served with policies."""
MLA_OFF = "VLLM_MLA_DISABLE"
PROMPTS_IN_GRAPHS = (
    "CUDA graphs of whole steps for prompts too (cudagraph_mode FULL): a replayed prompt shows nobody its queries; "
    "start with --compilation-config.cudagraph_mode FULL_AND_PIECEWISE, as vLLM does by default"
)
BIASED = "ALiBi: the kernel's bias goes by the slot of a token, which a compaction changes"
UNIFIED = (
    "--disable-hybrid-kv-cache-manager on a model that has layers without full attention: it puts all layers into the "
    "same blocks, which can then not be compacted"
)
CONNECTORS = f"KV connectors other than {' and '.join(connectors.SERVED)}: the reasons are in a table of their own"
MIXED_STAGES = "pipeline parallelism of a model that has layers without full attention: not tested"
LAUNCHED = "pipeline parallelism with external_launcher (torchrun): its stages do not hear each other's outputs"
TABLE: dict[str, Callable[[Start], bool]] = {
    f"speculative decoding by other methods than {', '.join(DRAFTING)}: not tested": (
        lambda s: bool(s.drafting) and s.drafting not in DRAFTING
    ),
    "speculative decoding with pipeline parallelism: not tested": lambda s: s.drafting is not None and s.pipeline > 1,
    CONNECTORS: lambda s: s.connector is not None,
    "decode context parallelism: a token's slot depends on its position": lambda s: s.decode_context > 1,
    "prefill context parallelism: a token's slot depends on its position": lambda s: s.prefill_context > 1,
    MIXED_STAGES: lambda s: s.pipeline > 1 and s.mixed,
    LAUNCHED: lambda s: s.pipeline > 1 and s.launched,
    "dual-batch overlap: it splits attention metadata before lengths are replaced": lambda s: s.ubatching,
    "pooling models: there is no decoding to compress for": lambda s: s.pooling,
    "encoder-decoder models: cross attention has no token to evict": lambda s: bool(s.model.get("is_encoder_decoder")),
    "multi-head latent attention (MLA): one latent per token, not keys and values": (
        lambda s: bool(s.model.get("kv_lora_rank"))
    ),
    f"KV cache dtypes {', '.join(FORMATS)}: scales live apart from the token slot": (
        lambda s: s.cache_dtype.startswith(FORMATS)
    ),
    BIASED: lambda s: bool(s.model.get("alibi")) or s.model.get("model_type") in ALIBI,
    UNIFIED: lambda s: s.unified_cache and s.mixed,
    "published KSA checkpoints, which vLLM takes for plain Qwen3: see `kvserve convert-summary`": (
        lambda s: bool(s.model.get("use_summary_attention"))
    ),
    PROMPTS_IN_GRAPHS: lambda s: s.prompts_in_graphs,
}
"""Reason -> whether it holds."""

NOTHING: dict[str, Callable[[Start], bool]] = {
    "a sliding window in all layers: nothing to compress, every policy but 'full' is refused": lambda s: s.windowed,
    "no layer with full attention: nothing to compress, every policy but 'full' is refused": (
        lambda s: bool(s.kinds) and "full_attention" not in s.kinds and not s.windowed
    ),
}
"""The same, of models that a server takes but can compress nothing of."""

REQUESTS = (
    "beam search: every step of a beam is a request of its own",
    "log-probabilities of the prompt, unless the policy says `at`: a prompt is read before its cache is compressed",
    "streaming input: the prompt may still grow",
    "policies that undo a rotation, on a picture whose tokens have several positions (M-RoPE)",
    "pictures whose tokens attend to each other (Gemma 3 and 4): the kernel knows them by position, not by slot",
)
"""What is refused of one request that names a compressing policy."""


def reasons(start: Start) -> list[str]:
    """Why kvserve cannot serve what is started in this way; empty if it can."""
    found = [reason for reason, holds in TABLE.items() if holds(start)]
    return [str(start.connector) if reason == CONNECTORS else reason for reason in found]


def useless(start: Start) -> list[str]:
    """Why kvserve could compress nothing of what is started in this way; empty if it can, as far as this tells."""
    return [reason for reason, holds in NOTHING.items() if holds(start)]


def refusal(start: Start) -> str | None:
    """All reasons in one sentence."""
    return "kvserve does not support " + "; ".join(why) if (why := reasons(start)) else None


def started(vllm_config: Any) -> Start:
    """vLLM's own configuration, in the engine."""
    from vllm.platforms import current_platform

    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    text = model.hf_text_config
    return Start(
        model={
            **{name: getattr(text, name, None) for name in ("layer_types", "alibi", "model_type")},
            "kv_lora_rank": model.use_mla,  # not with VLLM_MLA_DISABLE: latents are unpacked into keys and values then
            "is_encoder_decoder": model.is_encoder_decoder,
            "use_summary_attention": getattr(model.hf_config, "use_summary_attention", False),
        },
        drafting=None if (drafts := vllm_config.speculative_config) is None else str(drafts.method),
        connector=connectors.problem(vllm_config.kv_transfer_config, parallel.pipeline_parallel_size),
        decode_context=parallel.decode_context_parallel_size,
        prefill_context=getattr(parallel, "prefill_context_parallel_size", 1),
        pipeline=parallel.pipeline_parallel_size,
        launched=getattr(parallel, "distributed_executor_backend", None) == "external_launcher",
        ubatching=bool(getattr(parallel, "use_ubatching", False)),
        pooling=model.runner_type == "pooling",
        cache_dtype=str(vllm_config.cache_config.cache_dtype),
        unified_cache=bool(vllm_config.scheduler_config.disable_hybrid_kv_cache_manager),
        prompts_in_graphs=current_platform.is_cuda_alike() and prompts_in_graphs(vllm_config.compilation_config),
    )


def prompts_in_graphs(compilation_config: Any) -> bool:
    """Whether this vLLM configuration, or what was given on the command line, asks for them."""
    given = isinstance(compilation_config, Mapping)
    mode = compilation_config.get("cudagraph_mode") if given else getattr(compilation_config, "cudagraph_mode", None)
    return getattr(mode, "name", mode) == "FULL"


def described(model: Mapping[str, Any], environ: Mapping[str, str] = os.environ, **more: Any) -> Start:
    """A model's configuration file and the environment, read as vLLM reads them."""

    def on(name: str) -> bool:
        return environ.get(name, "0") not in ("", "0")

    if on(MLA_OFF):
        model = {**model, "kv_lora_rank": None}
    return Start(model=model, **more)


def asked(args: Any, model: Mapping[str, Any]) -> Start:
    """Parsed arguments of `vllm serve`, before anything is started, and the model's configuration file."""

    def value(name: str, default: Any) -> Any:
        found = getattr(args, name, None)
        return default if found is None else found

    return described(
        model,
        drafting=drafting(args),
        connector=connectors.problem(connectors.asked_for(args), int(value("pipeline_parallel_size", 1))),
        decode_context=int(value("decode_context_parallel_size", 1)),
        prefill_context=int(value("prefill_context_parallel_size", 1)),
        pipeline=int(value("pipeline_parallel_size", 1)),
        launched=value("distributed_executor_backend", None) == "external_launcher",
        ubatching=bool(value("enable_dbo", False)),
        pooling=value("runner", "auto") == "pooling" or value("convert", "auto") in ("embed", "classify"),
        cache_dtype=str(value("kv_cache_dtype", "auto")),
        unified_cache=bool(value("disable_hybrid_kv_cache_manager", False)),
        prompts_in_graphs=prompts_in_graphs(value("compilation_config", None)),
    )


def drafting(args: Any) -> str | None:
    """Method of speculative decoding that parsed arguments of `vllm serve` ask for; "" if they leave it to vLLM."""
    given = getattr(args, "speculative_config", None)
    config = given if isinstance(given, Mapping) else vars(given) if given is not None else {}
    named = getattr(args, "spec_method", None) or config.get("method")
    others = (getattr(args, name, None) for name in ("spec_model", "spec_tokens"))
    return str(named or "") if named or config or any(others) else None

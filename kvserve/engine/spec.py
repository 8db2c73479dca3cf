"""KV-cache spec of a layer whose cache may be compacted; importing this module registers it in vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, iter_layer_specs
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from kvserve.engine.blocks import CompressibleManager


@dataclass(frozen=True, kw_only=True)
class CompressibleSpec(FullAttentionSpec):
    """Full attention whose physical length may fall behind the logical one.

    Layers with the same `group_tag` share block tables. vLLM groups specs that merge, and merges only
    equal ones here, so that each tag becomes a KV-cache group of its own.
    """

    group_tag: int = 0
    layers: tuple[int, ...] = ()  # of the group, among all compressible ones in model order; here or on other stages
    resident_tokens: int | None = None  # start-up needs room for this many tokens, not max_model_len
    rope_problem: str | None = None  # of the model, the same for all layers, as are the next: see Facts
    output_problem: str | None = None
    unrotated: int = 0
    bundling: str = ""  # why there are as many groups as there are

    @classmethod
    def of(cls, spec: FullAttentionSpec, **ours: Any) -> "CompressibleSpec":
        return cls(**{f.name: getattr(spec, f.name) for f in fields(FullAttentionSpec)}, **ours)

    @classmethod
    def merge(cls, specs: list[Any]) -> Any:
        if any(spec != specs[0] for spec in specs):
            raise AssertionError("layers of different kvserve groups cannot share block tables")
        return specs[0]

    def is_uniform_with_collection(self, kv_cache_specs: Mapping[str, KVCacheSpec]) -> bool:
        return all(
            isinstance(spec, CompressibleSpec) and spec.group_tag == self.group_tag for spec in kv_cache_specs.values()
        )

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        stock = super().max_memory_usage_bytes(vllm_config)
        if self.resident_tokens is None:
            return stock
        return min(stock, cdiv(self.resident_tokens, self.block_size) * self.page_size_bytes)


def compressible(spec: KVCacheSpec) -> bool:
    """Whether a layer's cache is plain full attention, the only kind that is compacted."""
    return (
        type(spec) is FullAttentionSpec
        and spec.sliding_window is None
        and spec.attention_chunk_size is None
        and not spec.non_causal
    )


def is_compressible(spec: KVCacheSpec) -> bool:
    """Whether a KV-cache group of this spec is one of ours; its layers may differ in shape."""
    return all(isinstance(one, CompressibleSpec) for one in iter_layer_specs(spec))


def note(spec: KVCacheSpec, field: str) -> Any:
    """What the worker noted in the spec of one of our groups."""
    return getattr(next(iter(iter_layer_specs(spec))), field)


def tagged(
    specs: Mapping[str, KVCacheSpec], first: int, bundles: Sequence[tuple[int, ...]], **noted: Any
) -> dict[str, KVCacheSpec]:
    """The specs of compressible layers, in model order, with the tags of their bundles.

    first: index of the first one in the whole model. bundles: indices of the layers that share block tables. noted:
    further fields of all CompressibleSpecs.
    """
    tags = {layer: tag for tag, bundle in enumerate(bundles) for layer in bundle}
    return {
        name: CompressibleSpec.of(spec, group_tag=tags[layer], layers=bundles[tags[layer]], **noted)  # type: ignore[arg-type]
        for layer, (name, spec) in enumerate(specs.items(), first)
    }


# The registry skips its built-in specs when it is not empty, so these must come first.
KVCacheSpecRegistry._ensure_registered()
KVCacheSpecRegistry.register(CompressibleSpec, CompressibleManager, uniform_type_base_spec=FullAttentionSpec)

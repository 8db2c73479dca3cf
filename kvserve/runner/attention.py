"""vLLM's attention backends with two additions: physical sequence lengths, and a look at the queries.

Both are off until the runner attaches something: `builder.kv_lengths` and `impl.kv_tap`. A step without
compressed requests runs the stock code on the stock metadata.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from kvserve.runner.lengths import GroupLengths


class Alike:
    """Metadata of one step for the layer groups that differ in nothing but where their tokens lie."""

    def __init__(self) -> None:
        self._step: Tensor | None = None  # the step's positions: groups are asked with the same object
        self._made: Any = None

    def of(self, common_attn_metadata: Any, build: Callable[[], Any]) -> Any:
        if self._step is not common_attn_metadata.positions:
            self._step, self._made = common_attn_metadata.positions, build()
            return self._made
        twin = copy.copy(self._made)
        twin.block_table, twin.slot_mapping = common_attn_metadata.block_table_tensor, common_attn_metadata.slot_mapping
        return twin


class PhysicalLengths:
    """Mixin for metadata builders."""

    kv_lengths: GroupLengths | None = None
    kv_alike: Alike | None = None  # shared by the builders of such groups
    # Groups differ in their lengths, so no group may reuse another one's metadata.
    supports_update_block_table: bool = False

    def build(self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        build = super().build  # type: ignore[misc]
        physical = self.kv_lengths.physical(common_attn_metadata.seq_lens) if self.kv_lengths is not None else None
        if physical is not None:
            common_attn_metadata = copy.copy(common_attn_metadata)  # shared by the groups
            common_attn_metadata.seq_lens = physical
        elif self.kv_alike is not None:
            return self.kv_alike.of(
                common_attn_metadata, lambda: build(common_prefix_len, common_attn_metadata, *args, **kwargs)
            )
        return build(common_prefix_len, common_attn_metadata, *args, **kwargs)


def shape_of(builder: Any) -> tuple[Any, ...]:
    """What the CPU backend's metadata depends on beside the step: builders of equal shape make equal metadata."""
    names = "num_heads", "num_kv_heads", "head_dim", "dtype", "window_size", "block_size", "kv_cache_dtype", "isa"
    return (type(builder), *(getattr(builder, name) for name in names))


class QueryTap:
    """Mixin for attention implementations."""

    kv_tap: Any = None
    """Shown the queries (tokens, Hq, D) of a step, post-RoPE, and what attention made of them: see `LayerTap`."""

    def forward(self, layer: Any, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.kv_tap is None:
            return super().forward(layer, query, *args, **kwargs)  # type: ignore[misc,no-any-return]
        self.kv_tap.before(query)
        output: Tensor = super().forward(layer, query, *args, **kwargs)  # type: ignore[misc]
        self.kv_tap.after(query, output)
        return output


def _extended(base: Any) -> Any:
    """A vLLM backend class with both mixins."""
    impl = type("KV" + base.get_impl_cls().__name__, (QueryTap, base.get_impl_cls()), {})
    builder = type("KV" + base.get_builder_cls().__name__, (PhysicalLengths, base.get_builder_cls()), {})
    getters = {"get_impl_cls": staticmethod(lambda: impl), "get_builder_cls": staticmethod(lambda: builder)}
    return type("KV" + base.__name__, (base,), {"__module__": __name__, **getters})


class Backends:
    """The backends that kvserve extends, and their registration in vLLM."""

    cpu: ClassVar[dict[str, str]] = {"CPU_ATTN": "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend"}
    cuda: ClassVar[dict[str, str]] = {
        "FLASH_ATTN": "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend",
        "TRITON_ATTN": "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend",
    }

    @classmethod
    def register(cls, platform: str) -> None:
        """Put the extended backends in the place of vLLM's, in this process."""
        for name in cls.cpu if platform == "cpu" else cls.cuda:
            register_backend(AttentionBackendEnum[name], f"{__name__}.{name}")


def __getattr__(name: str) -> Any:
    """`kvserve.runner.attention.CPU_ATTN` and so on: made on first use: importing a backend needs its platform."""
    path = {**Backends.cpu, **Backends.cuda}.get(name)
    if path is None:
        raise AttributeError(name)
    module, _, cls = path.rpartition(".")
    globals()[name] = _extended(getattr(__import__(module, fromlist=[cls]), cls))
    return globals()[name]

"""vLLM's V1 model runner, which also compacts caches and hands physical lengths to attention."""

from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from kvserve import request as wire
from kvserve.compactor import Compactor, Layer
from kvserve.feedback import attached
from kvserve.guard import UnsupportedError
from kvserve.lengths import GroupLengths, shift_slots
from kvserve.options import KVOptions
from kvserve.queries import QueryRings, Span
from kvserve.slots import Slots, cpu_slots, gpu_slots
from kvserve.spec import CompressibleSpec, tagged

FP8 = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


class KVRunner:
    """Mixed in front of vLLM's V1 runners for CPU and CUDA."""

    kv: Compactor | None = None

    # -- start-up ------------------------------------------------------------------------------------

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        options = KVOptions.of(self.vllm_config)  # type: ignore[attr-defined]
        return tagged(super().get_kv_cache_spec(), options.groups, options.resident_tokens)  # type: ignore[misc]

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_profiling") or (args and args[0]):
            return
        self._kv_attach()

    def _kv_attach(self) -> None:
        """Build the compactor over the allocated cache and connect it to attention and block tables."""
        attention = get_layers_from_vllm_config(self.vllm_config, Attention)  # type: ignore[attr-defined]
        groups = {
            g: group.layer_names
            for g, group in enumerate(self.kv_cache_config.kv_cache_groups)  # type: ignore[attr-defined]
            if isinstance(group.kv_cache_spec, CompressibleSpec)
        }
        ours = {name for names in groups.values() for name in names}
        order = {name: i for i, name in enumerate(name for name in attention if name in ours)}
        device: torch.device = self.device  # type: ignore[attr-defined]
        queries = QueryRings(device)
        layers: dict[int, list[Layer]] = {g: [] for g in groups}
        for g, names in groups.items():
            for name in names:
                module = attention[name]
                layer = Layer(order[name], g, self._kv_slots(module, g), module.num_kv_heads, module.impl.scale)
                layers[g].append(layer)
                module.impl.kv_tap = _tap(queries, layer.index)
        self.kv = Compactor(
            layers,
            queries,
            head_offset=self._kv_head_offset(),
            device=device,
            trace=KVOptions.of(self.vllm_config).trace,  # type: ignore[attr-defined]
        )
        self._kv_lengths = {g: GroupLengths(self.max_num_reqs, device) for g in groups}  # type: ignore[attr-defined]
        for g, lengths in self._kv_lengths.items():
            shift_slots(self.input_batch.block_table[g], lengths, lambda n: self.req_indices.gpu[:n])  # type: ignore[attr-defined]
            for attn_group in self.attn_groups[g]:  # type: ignore[attr-defined]
                attn_group.get_metadata_builder(0).kv_lengths = lengths

    def _kv_head_offset(self) -> int:
        """Index of this rank's first KV head in the model."""
        rank = self.vllm_config.parallel_config.rank % self.vllm_config.parallel_config.tensor_parallel_size  # type: ignore[attr-defined]
        total = self.model_config.get_total_num_kv_heads()  # type: ignore[attr-defined]
        return int(rank * total // self.vllm_config.parallel_config.tensor_parallel_size)  # type: ignore[attr-defined]

    def _kv_slots(self, module: Any, group: int) -> Slots:
        """The view of one layer's cache that fits this platform's kernels."""
        cache_dtype = str(self.vllm_config.cache_config.cache_dtype)  # type: ignore[attr-defined]
        fp8 = FP8.get(cache_dtype)
        scales = (module._k_scale_float, module._v_scale_float)
        size = self.kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size  # type: ignore[attr-defined]
        if module.kv_cache.shape[2] != size:
            raise UnsupportedError(
                f"the attention kernel splits blocks of {size} tokens into {module.kv_cache.shape[2]}; "
                f"start with --block-size {module.kv_cache.shape[2]}"
            )
        if self.device.type != "cpu":  # type: ignore[attr-defined]
            if module.kv_cache.shape[3] != 2 * module.head_size:
                raise UnsupportedError(f"KV cache dtype {cache_dtype!r} stores more than keys and values with a token")
            return gpu_slots(module.kv_cache, module.head_size, scales, fp8)
        from kvserve.layout import cpu_packings

        cache = module.kv_cache
        _, keys, _, values = cpu_packings(
            module.isa, self.dtype, cache_dtype, cache.shape[2], cache.shape[3] // 2  # type: ignore[attr-defined]
        )  # fmt: skip
        return cpu_slots(cache, (keys, values), scales, fp8)

    # -- a step --------------------------------------------------------------------------------------

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        if self.kv is None:
            return super()._update_states(scheduler_output)  # type: ignore[misc]
        # Before anything else of the step: blocks that a plan frees may be zeroed or written by it.
        for plan in getattr(scheduler_output, "kv_plans", ()):
            self.kv.run(plan)
            self._kv_rewrite_row(plan.req_id, plan.group, list(plan.dst))
        for req_id in scheduler_output.finished_req_ids:
            self.kv.end(req_id)
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        self._kv_begin_requests(self.kv, scheduler_output)
        self._kv_begin_step(self.kv, scheduler_output)
        return result

    def _kv_rewrite_row(self, req_id: str, group: int, blocks: list[int]) -> None:
        self.requests[req_id].block_ids[group][:] = blocks  # type: ignore[attr-defined]
        row = self.input_batch.req_id_to_index.get(req_id)  # type: ignore[attr-defined]
        if row is not None:
            table = self.input_batch.block_table[group]  # type: ignore[attr-defined]
            table.clear_row(row)
            table.add_row(blocks, row)

    def _kv_begin_requests(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            policy = wire.compressing(new.sampling_params.extra_args if new.sampling_params else None)
            if policy is not None:
                kv.begin(new.req_id, policy, new.num_computed_tokens)
        cached = scheduler_output.scheduled_cached_reqs
        if not cached.resumed_req_ids:
            return
        for req_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if req_id in cached.resumed_req_ids and req_id in kv.requests:
                kv.begin(req_id, kv.requests[req_id].policy, computed)

    def _kv_begin_step(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        if not kv.requests:
            self._kv_idle(kv)
            return
        req_ids = self.input_batch.req_ids  # type: ignore[attr-defined]
        for group, lengths in self._kv_lengths.items():
            held = (kv.requests.get(r) for r in req_ids)
            lengths.begin_step([h.offset.get(group, 0) if h else 0 for h in held])
        # Without takers there is nothing to work out.
        spans = self._kv_spans(req_ids, scheduler_output.num_scheduled_tokens) if len(kv.queries) else []
        kv.queries.begin_step(spans)

    def _kv_idle(self, kv: Compactor) -> None:
        """The coming step carries no request of ours: attention sees what stock vLLM's sees."""
        kv.queries.begin_step([])
        for lengths in self._kv_lengths.values():
            lengths.end_step()

    def _kv_spans(self, req_ids: list[str], counts: dict[str, int]) -> list[Span]:
        spans, row = [], 0
        for i, req_id in enumerate(req_ids):
            position = int(self.input_batch.num_computed_tokens_cpu[i])  # type: ignore[attr-defined]
            spans.append(Span(req_id, row, position, counts[req_id]))
            row += counts[req_id]
        return spans

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        if self.kv is not None:
            self._kv_idle(self.kv)
        return super()._dummy_run(*args, **kwargs)  # type: ignore[misc]

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        return attached(output, self.kv.take_feedback() if self.kv is not None else None)


def _tap(queries: QueryRings, layer: int) -> Any:
    def tap(query: torch.Tensor) -> None:
        if queries.active:
            queries.store(layer, query)

    return tap

"""vLLM's V1 model runner: one method brings its books up to date with what the scheduler says."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.v1.core.sched.output import SchedulerOutput

from kvserve.channels import Plan
from kvserve.engine.compactor import Compactor
from kvserve.runner.attention import Alike, shape_of
from kvserve.runner.base import BatchRow, KVRunner
from kvserve.runner.lengths import shift_slots


class V1Runner(KVRunner):
    """Mixed in front of vLLM's V1 runners for CPU and CUDA."""

    def _kv_connect(self) -> None:
        self._kv_make_room()
        alike: dict[Any, Alike] = {}
        for g, lengths in self._kv_lengths.items():
            shift_slots(self.input_batch.block_table[g], lengths, lambda n: self.req_indices.gpu[:n])  # type: ignore[attr-defined]
            for attn_group in self.attn_groups[g]:  # type: ignore[attr-defined]
                builder = attn_group.get_metadata_builder(0)
                if self.device.type == "cpu":  # type: ignore[attr-defined]
                    builder.kv_alike = alike.setdefault(shape_of(builder), Alike())

    def _kv_make_room(self) -> None:
        """Where later pipeline stages put hidden states; vLLM (0.32, 0.33) forgets it where it does not warm up."""
        if self.intermediate_tensors is None and self.kv_stages.here > 0:  # type: ignore[has-type]
            make = self.model.make_empty_intermediate_tensors  # type: ignore[attr-defined]
            self.intermediate_tensors = make(self.max_num_tokens, self.model_config.dtype, self.device)  # type: ignore[attr-defined]

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        if self.kv is None:
            return super()._update_states(scheduler_output)  # type: ignore[misc]
        self._kv_run_plans(self.kv, scheduler_output)
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        self._kv_begin_requests(self.kv, scheduler_output)
        self._kv_start(self.kv, scheduler_output)
        rows = self._kv_rows(scheduler_output.num_scheduled_tokens)
        self._kv_begin_step(self.kv, self.input_batch.req_ids, rows)  # type: ignore[attr-defined]
        return result

    def _kv_begin_requests(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            self._kv_begin(kv, new)
        cached = scheduler_output.scheduled_cached_reqs
        if not cached.resumed_req_ids:
            return
        for req_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if req_id in cached.resumed_req_ids and req_id in kv.requests:
                kv.restart(req_id, computed)

    def _kv_rows(self, counts: dict[str, int]) -> Iterator[BatchRow]:
        batch = self.input_batch  # type: ignore[attr-defined]
        for i, req_id in enumerate(batch.req_ids):
            yield BatchRow(req_id, int(batch.num_computed_tokens_cpu[i]), counts[req_id])

    def _kv_rewrite_row(self, plan: Plan) -> None:
        blocks = list(plan.dst)
        self.requests[plan.req_id].block_ids[plan.group][:] = blocks  # type: ignore[attr-defined]
        row = self.input_batch.req_id_to_index.get(plan.req_id)  # type: ignore[attr-defined]
        if row is not None:
            table = self.input_batch.block_table[plan.group]  # type: ignore[attr-defined]
            table.clear_row(row)
            table.add_row(blocks, row)

    def _kv_blocks(self, req_id: str, group: int, count: int) -> Tensor:
        return torch.tensor(self.requests[req_id].block_ids[group][:count], device=self.device)  # type: ignore[attr-defined]

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM (0.32, 0.33) takes a draft model's cache to lie in the first group; say where it does."""
        metadata, of_draft = super()._build_attention_metadata(*args, **kwargs)  # type: ignore[misc]
        group: int = getattr(getattr(self, "drafter", None), "kv_cache_gid", 0)
        if of_draft is not None and group > 0:
            of_draft = copy.copy(of_draft)
            table = self.input_batch.block_table[group]  # type: ignore[attr-defined]
            of_draft.block_table_tensor = table.get_device_tensor(of_draft.num_reqs)
            of_draft.slot_mapping = kwargs["slot_mappings"][group][: of_draft.num_actual_tokens]
        return metadata, of_draft

    def _determine_batch_execution_and_padding(self, *args: Any, **kwargs: Any) -> Any:
        """A step that someone watches layer by layer is not replayed as one CUDA graph."""
        if self.kv is not None and self.kv.watched and kwargs.get("force_uniform_decode") is None:
            kwargs["force_uniform_decode"] = False
        return super()._determine_batch_execution_and_padding(*args, **kwargs)  # type: ignore[misc]

"""vLLM's V2 model runner: its books are on the device, changed by staged writes, and a batch is put in order anew
for every step. A request that was preempted comes again as a new one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.v1.core.sched.output import SchedulerOutput

from kvserve.channels import Plan, plans_of
from kvserve.runner.base import BatchRow, KVRunner


class V2Runner(KVRunner):
    """Mixed in front of vLLM's V2 runners for CPU and CUDA."""

    def finish_requests(self, scheduler_output: SchedulerOutput) -> None:
        """The first of the methods that bring the books up to date: plans run before."""
        if self.kv is not None:
            if plans_of(scheduler_output) and has_kv_transfer_group():
                # Blocks that plans write may still have to be copied; V1 sees to that before anything else.
                get_kv_transfer_group().handle_preemptions(scheduler_output.kv_connector_metadata)
            self._kv_run_plans(self.kv, scheduler_output)
        super().finish_requests(scheduler_output)  # type: ignore[misc]

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        super().add_requests(scheduler_output)  # type: ignore[misc]
        if self.kv is None:
            return
        for new in scheduler_output.scheduled_new_reqs:
            if new.req_id in self.kv.requests:
                self.kv.restart(new.req_id, new.num_computed_tokens)
            else:
                self._kv_begin(self.kv, new)
        self._kv_start(self.kv, scheduler_output)

    def gather_batch_req_state(self, scheduler_output: SchedulerOutput, dummy_run: bool) -> Any:
        """Here the order of the batch is known, and how it is run is not decided yet."""
        state, uniform = super().gather_batch_req_state(scheduler_output, dummy_run)  # type: ignore[misc]
        if self.kv is None:
            return state, uniform
        if state is None:
            self._kv_idle(self.kv)
            return state, uniform
        computed = self.req_states.num_computed_tokens_np[state.idx_mapping_np].tolist()  # type: ignore[attr-defined]
        counts = state.num_scheduled_tokens.tolist()
        self._kv_begin_step(self.kv, state.req_ids, map(BatchRow, state.req_ids, computed, counts))
        # Graphs of whole steps are those of uniform decoding; what is not uniform is replayed in pieces.
        return state, None if self.kv.watched else uniform

    def prepare_attn(self, input_batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """The stock slot mappings go by logical positions; those of shortened groups are written over them."""
        tables, slots = super().prepare_attn(input_batch)  # type: ignore[misc]
        shortened = {g: lengths for g, lengths in self._kv_lengths.items() if lengths.active} if self.kv else {}
        if shortened:
            count = int(input_batch.query_start_loc_np[input_batch.num_reqs])
            of_token = np.repeat(np.arange(input_batch.num_reqs), input_batch.num_scheduled_tokens)[:count]
            rows = torch.from_numpy(of_token).to(self.device)  # type: ignore[attr-defined]
            for g, lengths in shortened.items():
                at, size = lengths.positions(input_batch.positions[:count], rows), self.block_tables.block_sizes[g]  # type: ignore[attr-defined]
                slots[g, :count] = tables[g][rows, at // size].long() * size + at % size
        return tables, slots

    def _kv_rewrite_row(self, plan: Plan) -> None:
        row = self.req_states.req_id_to_index.get(plan.req_id)  # type: ignore[attr-defined]
        if row is not None:  # written before the blocks that the step adds, which begin where these end
            tables = self.block_tables  # type: ignore[attr-defined]
            tables.block_tables[plan.group].stage_write(row, 0, list(plan.dst))
            tables.num_blocks.np[plan.group, row] = len(plan.dst)

    def _kv_blocks(self, req_id: str, group: int, count: int) -> Tensor:
        row = self.req_states.req_id_to_index[req_id]  # type: ignore[attr-defined]
        ids: Tensor = self.block_tables.block_tables[group].gpu[row, :count]  # type: ignore[attr-defined]
        return ids.long()

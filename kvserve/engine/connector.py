"""What vLLM's KV connector hears of: requests that are never compressed, and no others.

A connector finds the keys of a token by its place in the block table, and a compaction changes that. So a request with
a compressing policy, and a canary's replay, is neither stored nor loaded: the connector is not told of it. What it must
know is which blocks such a request is about to write: their last owner may be one whose blocks it is still copying.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.request import Request

from kvserve.channels import Plan


class Hidden:
    """Requests that a connector does not hear of, from their start until the step that tells workers of their end."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self._written: set[int] = set()  # blocks that plans of the coming step write

    def plan(self, plans: Iterable[Plan]) -> None:
        self._written.update(block for plan in plans for block in plan.dst)

    def shown(self, output: SchedulerOutput) -> SchedulerOutput:
        """What a connector may see of a step. Blocks that hidden requests write look like copies in it.

        That is how vLLM's own copies look, which write blocks that the connector may still have to read.
        """
        if not self.ids and not self._written:
            return output
        cached, state = output.scheduled_cached_reqs, output.kv_connector_block_state
        taken = [new.block_ids for new in output.scheduled_new_reqs if new.req_id in self.ids]
        taken += [b for r, b in zip(cached.req_ids, cached.new_block_ids, strict=True) if b and r in self.ids]
        written = self._written | {block for groups in taken for block in chain.from_iterable(groups)} - {0}
        copies = [*(output.kv_cache_block_copies or ()), *(KVCacheBlockCopy(block, block) for block in written)]
        counts = self._others(output.num_scheduled_tokens)
        seen = replace(
            output,
            scheduled_new_reqs=[new for new in output.scheduled_new_reqs if new.req_id not in self.ids],
            scheduled_cached_reqs=self._cached(cached),
            num_scheduled_tokens=counts,
            total_num_scheduled_tokens=sum(counts.values()),
            scheduled_spec_decode_tokens=self._others(output.scheduled_spec_decode_tokens),
            scheduled_encoder_inputs=self._others(output.scheduled_encoder_inputs),
            preempted_req_ids=output.preempted_req_ids and output.preempted_req_ids - self.ids,
            finished_req_ids=output.finished_req_ids - self.ids,
            kv_cache_block_copies=copies or None,
            kv_connector_block_state=state
            and replace(
                state,
                req_ids=state.req_ids - self.ids,
                boundary_state_offloads=self._others(state.boundary_state_offloads),
            ),
        )
        self.ids -= output.finished_req_ids
        self._written.clear()
        return seen

    def _others(self, by_request: dict[str, Any]) -> dict[str, Any]:
        return {req_id: value for req_id, value in by_request.items() if req_id not in self.ids}

    def _cached(self, cached: CachedRequestData) -> CachedRequestData:
        places = [i for i, req_id in enumerate(cached.req_ids) if req_id not in self.ids]

        def at(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in places] if values else []

        return CachedRequestData(
            req_ids=at(cached.req_ids),
            resumed_req_ids=cached.resumed_req_ids - self.ids,
            new_token_ids=at(cached.new_token_ids),
            all_token_ids=self._others(cached.all_token_ids),
            new_block_ids=at(cached.new_block_ids),
            num_computed_tokens=at(cached.num_computed_tokens),
            num_output_tokens=at(cached.num_output_tokens),
        )


def hide(connector: Any, hidden: Hidden) -> None:
    """Let vLLM's scheduler ask and tell this connector nothing of hidden requests."""
    new, matched, allocated = (
        connector.on_new_request,
        connector.get_num_new_matched_tokens,
        connector.update_state_after_alloc,
    )
    build = connector.build_connector_meta

    def on_new_request(request: Request) -> None:
        if request.request_id not in hidden.ids:
            new(request)

    def get_num_new_matched_tokens(request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        known = request.request_id not in hidden.ids
        return matched(request, num_computed_tokens) if known else (0, False)

    def update_state_after_alloc(request: Request, blocks: Any, num_external_tokens: int) -> None:
        if request.request_id not in hidden.ids:
            allocated(request, blocks, num_external_tokens)

    def build_connector_meta(scheduler_output: SchedulerOutput) -> Any:
        return build(hidden.shown(scheduler_output))

    connector.on_new_request = on_new_request
    connector.get_num_new_matched_tokens = get_num_new_matched_tokens
    connector.update_state_after_alloc = update_state_after_alloc
    connector.build_connector_meta = build_connector_meta

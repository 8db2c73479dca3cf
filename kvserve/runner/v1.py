"""vLLM's V1 model runner, which also compacts caches and hands physical lengths to attention."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from kvserve.cache.records import Location, Span
from kvserve.channels import Asked, Plan, plans_of, with_feedback
from kvserve.engine.compactor import Compactor
from kvserve.engine.spec import compressible, tagged
from kvserve.evidence.observer import Layer
from kvserve.evidence.rope_finder import ropes_of
from kvserve.evidence.trial_pass import tried
from kvserve.policy import Policy
from kvserve.policy import request as wire
from kvserve.policy.rope import Rope
from kvserve.runner import attach
from kvserve.runner.attention import Alike, shape_of
from kvserve.runner.lengths import GroupLengths, shift_slots
from kvserve.startup.bundles import chosen
from kvserve.startup.facts import kinds_of, known
from kvserve.startup.options import KVOptions


class KVRunner:
    """Mixed in front of vLLM's V1 runners for CPU and CUDA."""

    kv: Compactor | None = None
    kv_ropes: dict[str, Rope]  # by layer
    kv_projections: dict[str, Any]  # of what a layer's attention puts out, by layer
    _kv_complete: Sequence[Span] = ()  # requests whose prompt is complete when the running step is

    # -- start-up ------------------------------------------------------------------------------------

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        config = self.vllm_config  # type: ignore[attr-defined]
        options, kinds = KVOptions.of(config), kinds_of(config)
        specs: dict[str, KVCacheSpec] = super().get_kv_cache_spec()  # type: ignore[misc]
        attach.refuse(self, specs)
        ours = {name: spec for name, spec in specs.items() if compressible(spec)}
        trial = tried(self, list(ours))
        self.kv_ropes, self.kv_projections = ropes_of(self, trial.keys), trial.projections
        unprojected = [name for name in ours if name not in self.kv_projections]
        unknown = [name for name in ours if name not in self.kv_ropes]
        bundles = chosen(options.groups, list(ours.values()), len(specs) - len(ours), kinds, config)
        return tagged(
            specs,
            bundles.groups,
            kinds,
            resident_tokens=options.resident_tokens,
            rope_problem=f"what positions do to the keys of layer {unknown[0]!r} is not known" if unknown else None,
            output_problem=f"what takes the output of layer {unprojected[0]!r} is not known" if unprojected else None,
            unrotated=sum(not rope.rotated for rope in self.kv_ropes.values()),
            bundling=bundles.why,
        )

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_profiling") or (args and args[0]):
            return
        self._kv_attach(kv_cache_config)

    def _kv_attach(self, kv_cache_config: KVCacheConfig) -> None:
        """Build the compactor over the allocated cache and connect it to attention and block tables."""
        device: torch.device = self.device  # type: ignore[attr-defined]
        attached = attach.layers_of(self)
        layers: dict[int, list[Layer]] = {g: [] for g in attach.groups_of(self)}
        for layer, _ in attached:
            layers[layer.group].append(layer)
        trace = KVOptions.of(self.vllm_config).trace  # type: ignore[attr-defined]
        self.kv = Compactor(layers, attach.head_offset(self), device, trace, attach.observers(self, attached))
        for layer, module in attached:
            module.impl.kv_tap = LayerTap(self.kv, layer)
        self._kv_lengths = {g: GroupLengths(self.max_num_reqs, device) for g in layers}  # type: ignore[attr-defined]
        alike: dict[Any, Alike] = {}
        for g, lengths in self._kv_lengths.items():
            shift_slots(self.input_batch.block_table[g], lengths, lambda n: self.req_indices.gpu[:n])  # type: ignore[attr-defined]
            for attn_group in self.attn_groups[g]:  # type: ignore[attr-defined]
                builder = attn_group.get_metadata_builder(0)
                builder.kv_lengths = lengths
                if device.type == "cpu":
                    builder.kv_alike = alike.setdefault(shape_of(builder), Alike())

    # -- a step --------------------------------------------------------------------------------------

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        if self.kv is None:
            return super()._update_states(scheduler_output)  # type: ignore[misc]
        # Before anything else of the step: blocks that a plan frees may be zeroed or written by it.
        plans_by_request = groupby(plans_of(scheduler_output), key=lambda plan: plan.req_id)
        by_request = [(key, list(same)) for key, same in plans_by_request]
        self.kv.prepare((plans, partial(self._kv_locate, self.kv, req_id)) for req_id, plans in by_request)
        for _, plans in by_request:
            self.kv.run(plans)
            for plan in plans:
                self._kv_rewrite_row(plan)
        for req_id in scheduler_output.finished_req_ids:
            self.kv.end(req_id)
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        self._kv_begin_requests(self.kv, scheduler_output)
        self._kv_begin_step(self.kv, scheduler_output)
        return result

    def _kv_rewrite_row(self, plan: Plan) -> None:
        blocks = list(plan.dst)
        self.requests[plan.req_id].block_ids[plan.group][:] = blocks  # type: ignore[attr-defined]
        row = self.input_batch.req_id_to_index.get(plan.req_id)  # type: ignore[attr-defined]
        if row is not None:
            table = self.input_batch.block_table[plan.group]  # type: ignore[attr-defined]
            table.clear_row(row)
            table.add_row(blocks, row)

    def _kv_begin_requests(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            asked = Asked.of(new.sampling_params)
            if asked.policy is not None:
                make = partial(self._kv_policy, asked.policy, new.req_id)
                kv.begin(new.req_id, asked.name, make, new.num_computed_tokens)
        cached = scheduler_output.scheduled_cached_reqs
        if not cached.resumed_req_ids:
            return
        for req_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if req_id in cached.resumed_req_ids and req_id in kv.requests:
                kv.restart(req_id, computed)

    def _kv_policy(self, text: str, req_id: str) -> tuple[Policy, int]:
        """A request's policy, and how many of its tokens count as prompt."""
        prompt = self.requests[req_id].num_prompt_tokens  # type: ignore[attr-defined]
        facts = known(self.vllm_config, self.kv_cache_config)  # type: ignore[attr-defined]
        policy = wire.built(text, facts, prompt)
        return policy, policy.prompt_of(prompt)

    def _kv_begin_step(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        if not kv.requests:
            self._kv_idle(kv)
            return
        req_ids = self.input_batch.req_ids  # type: ignore[attr-defined]
        for group, lengths in self._kv_lengths.items():
            records = (kv.requests.get(r) for r in req_ids)
            lengths.begin_step([r.offset.get(group, 0) if r else 0 for r in records])
        spans = [] if kv.idle else self._kv_spans(kv, req_ids, scheduler_output.num_scheduled_tokens)
        kv.begin_step(spans)
        self._kv_complete = [span for span in spans if kv.undivided(span)]

    def _kv_idle(self, kv: Compactor) -> None:
        """The coming step carries no request of ours: attention sees what stock vLLM's sees."""
        kv.begin_step([])
        self._kv_complete = []
        for lengths in self._kv_lengths.values():
            lengths.end_step()

    def _kv_spans(self, kv: Compactor, req_ids: list[str], counts: dict[str, int]) -> list[Span]:
        """The tokens that the coming step has of requests of ours."""
        spans, row = [], 0
        for i, req_id in enumerate(req_ids):
            if (record := kv.requests.get(req_id)) is not None:
                position = int(self.input_batch.num_computed_tokens_cpu[i])  # type: ignore[attr-defined]
                locate = partial(self._kv_locate, kv, req_id)
                spans.append(Span(record, row, position, counts[req_id], locate))
            row += counts[req_id]
        return spans

    def _kv_locate(self, kv: Compactor, req_id: str, logical: int) -> Mapping[int, Location]:
        """Where the first `logical` tokens of a request lie, by group."""
        found = {}
        for group in kv.layers:
            slots = logical - kv.requests[req_id].offset.get(group, 0)
            size = self.kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size  # type: ignore[attr-defined]
            ids = self.requests[req_id].block_ids[group][: -(-slots // size)]  # type: ignore[attr-defined]
            blocks = torch.tensor(ids, device=self.device)  # type: ignore[attr-defined]
            found[group] = Location(req_id, group, logical, slots, blocks)
        return found

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        if self.kv is not None:
            self._kv_idle(self.kv)
        return super()._dummy_run(*args, **kwargs)  # type: ignore[misc]

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        if self.kv is None:
            return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        for span in self._kv_complete:
            self.kv.divide(span)
        self._kv_complete = []
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        return with_feedback(output, self.kv.take_feedback())


class LayerTap:
    """What one layer's attention calls before and after it has run."""

    def __init__(self, kv: Compactor, layer: Layer) -> None:
        self._kv, self._layer = kv, layer

    def before(self, query: torch.Tensor) -> None:
        for observer in self._kv.active:
            observer.before(self._layer, query)

    def after(self, query: torch.Tensor, output: torch.Tensor) -> None:
        for observer in self._kv.active:
            observer.after(self._layer, query, output)

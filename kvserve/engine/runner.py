"""vLLM's V1 model runner, which also compacts caches and hands physical lengths to attention."""

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from kvserve.engine import attach
from kvserve.engine.attention import Alike, shape_of
from kvserve.engine.compactor import Compactor
from kvserve.engine.feedback import attached as with_feedback
from kvserve.engine.lengths import GroupLengths, shift_slots
from kvserve.engine.records import Cache
from kvserve.engine.spec import compressible, tagged
from kvserve.evidence.gather import Layer, Prompt
from kvserve.evidence.queries import QueryRings, Span
from kvserve.policy import Policy
from kvserve.policy import request as wire
from kvserve.policy.rope import Rope
from kvserve.startup.bundles import chosen
from kvserve.startup.facts import made_of
from kvserve.startup.options import KVOptions
from kvserve.summary import file as summary_file
from kvserve.summary.maker import Reading


class KVRunner:
    """Mixed in front of vLLM's V1 runners for CPU and CUDA."""

    kv: Compactor | None = None
    kv_ropes: dict[str, Rope]  # by layer
    _kv_complete: list[Span]  # requests whose prompt is complete when the running step is

    # -- start-up ------------------------------------------------------------------------------------

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        config = self.vllm_config  # type: ignore[attr-defined]
        options, summaries = KVOptions.of(config), summary_file.about_for(config)
        kinds = summaries.layers if summaries else ()
        specs: dict[str, KVCacheSpec] = super().get_kv_cache_spec()  # type: ignore[misc]
        attach.refuse(self, specs)
        ours = {name: spec for name, spec in specs.items() if compressible(spec)}
        self.kv_ropes = attach.ropes_of(self, list(ours))
        unknown = [name for name in ours if name not in self.kv_ropes]
        bundles = chosen(options.groups, list(ours.values()), len(specs) - len(ours), kinds, config)
        return tagged(
            specs,
            bundles.groups,
            kinds,
            resident_tokens=options.resident_tokens,
            rope_problem=f"what positions do to the keys of layer {unknown[0]!r} is not known" if unknown else None,
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
        self._kv_facts = made_of(self.vllm_config, kv_cache_config)  # type: ignore[attr-defined]
        maker = attach.summary_maker(self, attached)
        self.kv = Compactor(layers, QueryRings(device), attach.head_offset(self), device, trace, maker)
        for layer, module in attached:
            module.impl.kv_tap = Tap(self.kv, layer)
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
        all_plans = getattr(scheduler_output, "kv_plans", ())
        self.kv.prepare(all_plans, partial(self._kv_caches, self.kv))
        for _, same in groupby(all_plans, key=lambda plan: plan.req_id):
            plans = list(same)
            self.kv.run(plans)
            for plan in plans:
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
            extra_args = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            if wire.KEY in extra_args:
                make = partial(self._kv_policy, extra_args, new.req_id)
                kv.begin(new.req_id, wire.policy_name(extra_args), make, new.num_computed_tokens)
        cached = scheduler_output.scheduled_cached_reqs
        if not cached.resumed_req_ids:
            return
        for req_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if req_id in cached.resumed_req_ids and req_id in kv.requests:
                kv.restart(req_id, computed)

    def _kv_policy(self, extra_args: dict[str, Any], req_id: str) -> tuple[Policy, int]:
        """A request's policy, and how many of its tokens count as prompt."""
        prompt = self.requests[req_id].num_prompt_tokens  # type: ignore[attr-defined]
        policy = wire.parse(extra_args[wire.KEY]).settled(self._kv_facts).for_prompt(prompt)
        return policy, policy.prompt_of(prompt)

    def _kv_begin_step(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        if not kv.requests:
            self._kv_idle(kv)
            return
        req_ids = self.input_batch.req_ids  # type: ignore[attr-defined]
        for group, lengths in self._kv_lengths.items():
            held = (kv.requests.get(r) for r in req_ids)
            lengths.begin_step([h.offset.get(group, 0) if h else 0 for h in held])
        # Without takers there is nothing to work out.
        takers = len(kv.queries) or len(kv.gather) or (kv.summaries is not None and len(kv.summaries))
        spans = self._kv_spans(req_ids, scheduler_output.num_scheduled_tokens) if takers else []
        for span in spans:
            if kv.gather.waiting(span):
                kv.count_waiting(list(self._kv_caches(kv, span.req_id, span.position)))
        kv.queries.begin_step(spans)
        prompts = [span for span in spans if kv.gather.wants(span)]
        kv.gather.begin_step([self._kv_prompt(kv, span) for span in prompts])
        if kv.summaries is not None:
            ours = [span for span in spans if span.req_id in kv.summaries]
            needing = [span for span in ours if kv.summaries.needs(span, kv.requests[span.req_id])]
            kv.summaries.begin_step([Reading(*self._kv_prompt(kv, span)) for span in needing])
        self._kv_complete = [s for s in prompts if kv.undivided(s.req_id, s.position + s.count)]

    def _kv_caches(self, kv: Compactor, req_id: str, logical: int) -> Iterator[Cache]:
        """Where the first `logical` tokens of a request lie, group by group."""
        for group in kv.layers:
            slots = logical - kv.requests[req_id].offset.get(group, 0)
            size = self.kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size  # type: ignore[attr-defined]
            ids = self.requests[req_id].block_ids[group][: -(-slots // size)]  # type: ignore[attr-defined]
            yield Cache(req_id, group, logical, slots, torch.tensor(ids, device=self.device))  # type: ignore[attr-defined]

    def _kv_prompt(self, kv: Compactor, span: Span) -> Prompt:
        caches = self._kv_caches(kv, span.req_id, span.position + span.count)
        return Prompt(span, {cache.group: cache for cache in caches})

    def _kv_idle(self, kv: Compactor) -> None:
        """The coming step carries no request of ours: attention sees what stock vLLM's sees."""
        kv.queries.begin_step([])
        kv.gather.begin_step([])
        if kv.summaries is not None:
            kv.summaries.begin_step([])
        self._kv_complete = []
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
        if self.kv is None:
            return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        for span in self._kv_complete:
            self.kv.divide(list(self._kv_caches(self.kv, span.req_id, span.position + span.count)))
        self._kv_complete = []
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        return with_feedback(output, self.kv.take_feedback())


class Tap:
    """What one layer's attention calls before and after it has run."""

    def __init__(self, kv: Compactor, layer: Layer) -> None:
        self._kv, self._layer = kv, layer

    def before(self, query: torch.Tensor) -> None:
        if self._kv.queries.active:
            self._kv.queries.store(self._layer.index, query)

    def after(self, query: torch.Tensor, output: torch.Tensor) -> None:
        if self._kv.gather.active:
            self._kv.gather.after_attention(self._layer, query)
        if self._kv.summaries is not None and self._kv.summaries.active:
            self._kv.summaries.after_attention(self._layer, query, output)

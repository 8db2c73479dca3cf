"""What kvserve adds to vLLM's model runners, whichever: it runs plans and hands physical lengths to attention.

An adapter for each runner (`v1`, `v2`) says when that happens in a step, and where the runner keeps its block tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from kvserve.cache.records import Location, Span
from kvserve.channels import Asked, Plan, plans_of, prefixes_of, with_feedback
from kvserve.engine.compactor import Compactor
from kvserve.engine.spec import compressible, tagged
from kvserve.evidence.observer import Layer
from kvserve.evidence.rope_finder import ropes_of
from kvserve.evidence.trial_pass import tried
from kvserve.policy import Policy
from kvserve.policy import request as wire
from kvserve.policy.rope import Rope
from kvserve.runner import attach
from kvserve.runner.lengths import GroupLengths
from kvserve.runner.stages import Staged
from kvserve.runner.tap import LayerTap
from kvserve.startup.bundles import bundled, chosen, fit_a_draft_model
from kvserve.startup.facts import kinds_of, known
from kvserve.startup.options import KVOptions
from kvserve.startup.stages import PipelineStage, told


class BatchRow(NamedTuple):
    """The tokens of one request in the batch of a step."""

    req_id: str
    position: int  # logical, of the first one
    tokens: int


class KVRunner(Staged):
    """Mixed in front of one of vLLM's runners, behind the adapter for it."""

    kv_ropes: dict[str, Rope]  # by layer
    kv_projections: dict[str, Any]  # of what a layer's attention puts out, by layer
    _kv_batch: Sequence[str] = ()  # requests of the last step in its order; none if attention saw no offsets
    _kv_complete: Sequence[Span] = ()  # requests whose prompt is complete when the running step is
    _kv_taps: Sequence[LayerTap] = ()

    # -- what an adapter says --------------------------------------------------------------------------

    def _kv_blocks(self, req_id: str, group: int, count: int) -> Tensor:
        """The first `count` block ids of a request."""
        raise NotImplementedError

    def _kv_rewrite_row(self, plan: Plan) -> None:
        """From now on these blocks, and no others, hold the request's tokens in the plan's group."""
        raise NotImplementedError

    def _kv_connect(self) -> None:
        """The compactor stands: let block tables follow `_kv_lengths`."""

    # -- start-up --------------------------------------------------------------------------------------

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        config = self.vllm_config  # type: ignore[attr-defined]
        options, kinds = KVOptions.of(config), kinds_of(config)
        specs: dict[str, KVCacheSpec] = super().get_kv_cache_spec()  # type: ignore[misc]
        attach.refuse(self, specs)
        drafting = attach.drafting_layers(self)
        ours = {name: spec for name, spec in specs.items() if compressible(spec) and name not in drafting}
        self.kv_stages = stages = told(self._kv_stage(ours, len(specs) - len(ours)))
        made = chosen(options.groups, stages.specs, stages.others, kinds, config, stages.counts)
        if drafting and ours:
            fit_a_draft_model(made.groups, len(ours), len(drafting & set(specs)))
        bundles = bundled(stages.counts, made.groups, kinds)
        about = {"resident_tokens": options.resident_tokens, "bundling": made.why, **stages.about}
        return specs | tagged(ours, stages.first, bundles, **about)

    def _kv_stage(self, ours: dict[str, KVCacheSpec], others: int) -> PipelineStage:
        """What this pipeline stage has, or this process if it is alone."""
        trial = tried(self, list(ours))
        self.kv_ropes, self.kv_projections = ropes_of(self, trial.keys), trial.projections
        unprojected = [name for name in ours if name not in self.kv_projections]
        unknown = [name for name in ours if name not in self.kv_ropes]
        return PipelineStage(
            ours,
            others,
            rope_problem=f"what positions do to the keys of layer {unknown[0]!r} is not known" if unknown else None,
            output_problem=f"what takes the output of layer {unprojected[0]!r} is not known" if unprojected else None,
            unrotated=sum(not rope.rotated for rope in self.kv_ropes.values()),
        )

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_profiling") or (args and args[0]):
            return
        self._kv_attach()

    def _kv_attach(self) -> None:
        """Build the compactor over the allocated cache and connect it to attention and block tables."""
        device: torch.device = self.device  # type: ignore[attr-defined]
        attached = attach.layers_of(self)
        layers: dict[int, list[Layer]] = {g: [] for g in attach.groups_of(self)}
        for layer, _ in attached:
            layers[layer.group].append(layer)
        trace = KVOptions.of(self.vllm_config).trace  # type: ignore[attr-defined]
        observers, drafts = attach.observers(self, attached), attach.drafts(self)
        whole = self.kv_stages.num_layers
        self.kv = Compactor(layers, whole, attach.head_offset(self), device, trace, observers, drafts)
        captured = attach.captured_tokens(self)
        self._kv_taps = [LayerTap(self.kv, layer, attach.staging(self, module, captured)) for layer, module in attached]
        for tap, (_, module) in zip(self._kv_taps, attached, strict=True):
            module.impl.kv_tap = tap
        most: int = self.max_num_reqs  # type: ignore[attr-defined]
        self._kv_lengths = {g: GroupLengths(most, device, always=captured > 0) for g in layers}
        for g, lengths in self._kv_lengths.items():
            for attn_group in self.attn_groups[g]:  # type: ignore[attr-defined]
                attn_group.get_metadata_builder(0).kv_lengths = lengths
        self._kv_connect()

    # -- a step: plans ---------------------------------------------------------------------------------

    def _kv_run_plans(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        """Before anything else of the step: blocks that a plan frees may be zeroed or written by it."""
        news = prefixes_of(scheduler_output)
        kv.held.drop(news.dropped)
        plans_by_request = groupby(plans_of(scheduler_output), key=lambda plan: plan.req_id)
        by_request = [(key, list(same)) for key, same in plans_by_request]
        kv.prepare((plans, partial(self._kv_locate, kv, req_id)) for req_id, plans in by_request)
        for req_id, plans in by_request:
            kv.run(plans)
            for plan in plans:
                self._kv_rewrite_row(plan)
            if req_id in news.made:
                kv.keep(news.made[req_id], req_id, plans[0].logical)
        for req_id in scheduler_output.finished_req_ids:
            kv.end(req_id)

    def _kv_begin(self, kv: Compactor, new: Any) -> None:
        """A request comes to this worker for the first time; new: vLLM's NewRequestData."""
        asked = Asked.of(new.sampling_params)
        if asked.policy is not None:
            make = partial(self._kv_policy, asked.policy, new.prompt_len)
            only_text = new.prompt_token_ids is not None and not new.mm_features
            text = new.prompt_token_ids if only_text else None
            kv.begin(new.req_id, asked.name, make, new.num_computed_tokens, text)

    def _kv_start(self, kv: Compactor, scheduler_output: SchedulerOutput) -> None:
        """Requests that have begun, or begun again, with this step: those that start from a compressed prefix do."""
        for req_id, prefix_id in prefixes_of(scheduler_output).taken.items():
            kv.start_from(prefix_id, req_id)

    def _kv_policy(self, text: str, prompt: int) -> tuple[Policy, int]:
        """A request's policy, and how many of its tokens count as prompt."""
        facts = known(self.vllm_config, self.kv_cache_config)  # type: ignore[attr-defined]
        policy = wire.built(text, facts, prompt)
        return policy, policy.prompt_of(prompt)

    # -- a step: tokens --------------------------------------------------------------------------------

    def _kv_begin_step(self, kv: Compactor, batch: Sequence[str], rows: Iterable[BatchRow]) -> None:
        """The coming step has these requests, and rows of them, in this order."""
        if not kv.requests:
            self._kv_idle(kv)
            return
        if kv.changed or batch != self._kv_batch:
            self._kv_batch, kv.changed = list(batch), False
            for group, lengths in self._kv_lengths.items():
                records = map(kv.requests.get, batch)
                lengths.begin_step([r.offset.get(group, 0) if r else 0 for r in records])
        spans = [] if kv.idle else list(self._kv_spans(kv, rows))
        kv.begin_step(spans)
        self._kv_complete = [span for span in spans if kv.undivided(span)]

    def _kv_idle(self, kv: Compactor) -> None:
        """The coming step carries no request of ours: attention sees what stock vLLM's sees."""
        kv.begin_step([])
        self._kv_complete, self._kv_batch = [], ()
        for lengths in self._kv_lengths.values():
            lengths.end_step()

    def _kv_spans(self, kv: Compactor, rows: Iterable[BatchRow]) -> Iterable[Span]:
        """The tokens that the coming step has of requests of ours."""
        first = 0
        for req_id, position, count in rows:
            if (record := kv.requests.get(req_id)) is not None:
                yield Span(record, first, position, count, partial(self._kv_locate, kv, req_id))
            first += count

    def _kv_locate(self, kv: Compactor, req_id: str, logical: int) -> Mapping[int, Location]:
        """Where the first `logical` tokens of a request lie, by group."""
        found = {}
        for group in kv.layers:
            slots = logical - kv.requests[req_id].offset.get(group, 0)
            size = self.kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size  # type: ignore[attr-defined]
            found[group] = Location(req_id, group, logical, slots, self._kv_blocks(req_id, group, -(-slots // size)))
        return found

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        if self.kv is not None:
            self._kv_idle(self.kv)
        return super()._dummy_run(*args, **kwargs)  # type: ignore[misc]

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        if self.kv is None:
            return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        for tap in self._kv_taps:
            tap.catch_up()
        for span in self._kv_complete:
            self.kv.divide(span)
        self._kv_complete = []
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        return with_feedback(output, self._kv_said(self.kv)) if self.kv_stages.last else output

"""Pipeline parallelism: where the layers of this stage stand in the whole model.

Stages tell each other what they have when the engine asks for their caches. So a layer has the index that it has in
one process, and all stages make the same groups: each has as many layers of a stage as any other group.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from vllm.distributed import get_pp_group
from vllm.v1.kv_cache_interface import KVCacheSpec

from kvserve.startup.guard import UnsupportedError
from kvserve.startup.refusals import MIXED_STAGES


class PipelineStage(NamedTuple):
    """What one stage has."""

    specs: Mapping[str, KVCacheSpec]  # of the compressible layers, in model order
    others: int = 0  # further layers that hold a cache
    rope_problem: str | None = None  # see Facts
    output_problem: str | None = None
    unrotated: int = 0


class Stages(NamedTuple):
    """All stages, first to last, and which of them this process is. Without pipeline parallelism there is one."""

    each: Sequence[PipelineStage]
    here: int = 0

    @property
    def counts(self) -> list[int]:
        """Compressible layers of each stage."""
        return [len(stage.specs) for stage in self.each]

    @property
    def num_layers(self) -> int:
        """Compressible layers of the whole model."""
        return sum(self.counts)

    @property
    def first(self) -> int:
        """Index in the whole model of the first compressible layer here."""
        return sum(self.counts[: self.here])

    @property
    def last(self) -> bool:
        """Whether this is the stage that samples, and whose word the scheduler hears."""
        return self.here == len(self.each) - 1

    @property
    def specs(self) -> list[KVCacheSpec]:
        return [spec for stage in self.each for spec in stage.specs.values()]

    @property
    def others(self) -> int:
        return sum(stage.others for stage in self.each)

    @property
    def about(self) -> dict[str, str | int | None]:
        """What is noted in the specs of all layers: see `kvserve.engine.spec.CompressibleSpec`."""
        return {
            "rope_problem": next((s.rope_problem for s in self.each if s.rope_problem), None),
            "output_problem": next((s.output_problem for s in self.each if s.output_problem), None),
            "unrotated": sum(s.unrotated for s in self.each),
        }


def told(mine: PipelineStage) -> Stages:
    """What all stages have; all of them must call it. Raises UnsupportedError for layers of several kinds."""
    group = get_pp_group()
    if group.world_size == 1:
        return Stages([mine])
    each: list[PipelineStage] = [mine] * group.world_size
    torch.distributed.all_gather_object(each, mine, group=group.cpu_group)
    found = Stages(each, group.rank_in_group)
    if found.others:
        raise UnsupportedError(f"kvserve does not support {MIXED_STAGES}")
    return found

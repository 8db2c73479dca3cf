"""vLLM's OffloadingConnector on a CPU: its copier needs a GPU, so there is one here that copies as late as it may.

A GPU copies beside the steps, whenever it comes to it. Here a block is read when someone waits for its copy, or else
`PATIENCE` steps after the copy was asked for: what is written over a block in between ends up in the store.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from vllm import LLM
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

from tests.engine import harness

PATIENCE = 200
"""Steps; more than a request of these tests takes, and the next one that gets its blocks."""


class Job(NamedTuple):
    """One copy that was asked for: `into` the store or out of it."""

    into: bool
    gpu: Any
    cpu: Any
    due: int  # step, counted from the start


class LateCopier(OffloadingWorker):
    """Copies blocks between the cache and a store of equal tensors."""

    def __init__(self, caches: CanonicalKVCaches, chunks: int) -> None:
        self.caches = caches
        self.store = [torch.zeros(chunks, each.tensor.shape[1], dtype=torch.int8) for each in caches.tensors]
        self.jobs: dict[int, Job] = {}
        self.done: list[int] = []
        self.now = self.stored = self.loaded = self.waited = 0  # steps, blocks, blocks, jobs

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self.jobs[job_id] = Job(True, src_spec, dst_spec, self.now + PATIENCE)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any, expedited: bool = False) -> bool:
        self.jobs[job_id] = Job(False, dst_spec, src_spec, self.now + 2)
        return True

    def wait(self, job_ids: set[int]) -> None:
        for job_id in sorted(job_ids & self.jobs.keys()):
            self.waited += 1
            self._copy(job_id)

    def get_finished(self) -> list[TransferResult]:
        self.now += 1
        for job_id in [job_id for job_id, job in self.jobs.items() if job.due <= self.now]:
            self._copy(job_id)
        done, self.done = self.done, []
        return [TransferResult(job_id, True) for job_id in done]

    def _copy(self, job_id: int) -> None:
        job = self.jobs.pop(job_id)
        for group, block, chunk in self._places(job):
            for ref in self.caches.group_data_refs[group]:
                cache, store = self.caches.tensors[ref.tensor_idx].tensor, self.store[ref.tensor_idx]
                if job.into:
                    store[chunk].copy_(cache[block])
                else:
                    cache[block].copy_(store[chunk])
        count = len(job.gpu.block_ids)
        self.stored, self.loaded = self.stored + count * job.into, self.loaded + count * (not job.into)
        self.done.append(job_id)

    @staticmethod
    def _places(job: Job) -> Iterator[tuple[int, int, int]]:
        """Group, block and place in the store of each block; a place holds one block here."""
        groups = [group for group, size in enumerate(job.gpu.group_sizes) for _ in range(size)]
        yield from zip(groups, job.gpu.block_ids.tolist(), job.cpu.block_ids.tolist(), strict=True)


def config(**extra: Any) -> dict[str, Any]:
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"cpu_bytes_to_use": 1 << 28, **extra},
    }


@contextmanager
def late_copies() -> Iterator[None]:
    """Engines started inside copy in this way."""
    stock = CPUOffloadingSpec.get_worker

    def get_worker(self: CPUOffloadingSpec, caches: CanonicalKVCaches) -> OffloadingWorker:
        self._worker = self._worker or LateCopier(caches, self.num_chunks)  # type: ignore[assignment]
        return self._worker

    CPUOffloadingSpec.get_worker = get_worker  # type: ignore[method-assign]
    try:
        yield
    finally:
        CPUOffloadingSpec.get_worker = stock  # type: ignore[method-assign]


def start(transfer: dict[str, Any] | None = None, **engine: Any) -> LLM:
    with late_copies():
        return harness.start(kv_transfer_config=transfer or config(), **engine)


def copier(llm: LLM) -> LateCopier:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    connector: Any = get_kv_transfer_group()
    connector = getattr(connector, "_connectors", [connector])[0]
    return connector.connector_worker.worker


def finish_copies(llm: LLM) -> None:
    """Step until the last copy is made."""
    core = llm.llm_engine.engine_core.engine_core
    while harness.scheduler(llm).connector.has_pending_push_work():
        core.step()

"""vLLM's workers with kvserve's model runner: name `kvserve.engine.worker.KVWorker` in --worker-cls."""

from typing import Any

from vllm.platforms import current_platform

from kvserve.engine.compactor import Compactor
from kvserve.evidence.probe import Probe
from kvserve.runner.attention import Backends
from kvserve.startup.guard import refuse_unsupported


def _register(platform: str) -> None:
    from vllm.v1.attention import selector

    Backends.register(platform)
    # A stock engine in this process may have looked its backend up before.
    selector._cached_get_attn_backend.cache_clear()


class Probed:
    """What `kvserve calibrate` asks of workers, by `collective_rpc`."""

    def kv_probe_start(self) -> None:
        """Sample every prompt of a compressing request from now on."""
        kv: Compactor = self.model_runner.kv  # type: ignore[attr-defined]
        kv.probe, kv.gather.extra = Probe(), ("bands",)

    def kv_probe_take(self) -> Probe:
        """What was sampled since the last call; sampling goes on."""
        kv: Compactor = self.model_runner.kv  # type: ignore[attr-defined]
        assert kv.probe is not None
        taken, kv.probe = kv.probe, Probe()
        return taken


def _cpu_worker() -> type:
    from vllm.v1.worker import cpu_worker
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    from kvserve.runner.seeds import Seeds
    from kvserve.runner.v1 import KVRunner

    class CPURunner(Seeds, KVRunner, CPUModelRunner):
        """V1 runner on CPU."""

    class CPUKVWorker(Probed, cpu_worker.CPUWorker):
        """CPU worker. `init_device` names its runner class, so the name is swapped while it runs."""

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            refuse_unsupported(vllm_config)
            _register("cpu")
            super().__init__(vllm_config, *args, **kwargs)

        def init_device(self) -> None:
            stock = cpu_worker.CPUModelRunner
            cpu_worker.CPUModelRunner = CPURunner
            try:
                super().init_device()
            finally:
                cpu_worker.CPUModelRunner = stock

    return CPUKVWorker


def _cuda_worker() -> type:
    from vllm.v1.worker import gpu_worker
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from kvserve.runner.v1 import KVRunner

    class CUDARunner(KVRunner, GPUModelRunner):
        """V1 runner on CUDA."""

    class CUDAKVWorker(Probed, gpu_worker.Worker):
        """CUDA worker on the V1 runner."""

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            refuse_unsupported(vllm_config)
            _register("cuda")
            super().__init__(vllm_config, *args, **kwargs)

        def _make_model_runner(self) -> Any:
            return CUDARunner(self.vllm_config, self.device)

    return CUDAKVWorker


def __getattr__(name: str) -> Any:
    if name != "KVWorker":
        raise AttributeError(name)
    globals()[name] = _cpu_worker() if current_platform.is_cpu() else _cuda_worker()
    return globals()[name]

"""vLLM's workers with kvserve's model runner: name `kvserve.engine.worker.KVWorker` in --worker-cls."""

from typing import Any
from unittest.mock import patch

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
    from vllm.v1.worker import cpu_model_runner, cpu_worker
    from vllm.v1.worker.cpu import model_runner as cpu_model_runner_v2

    from kvserve.runner.seeds import Seeds
    from kvserve.runner.v1 import V1Runner
    from kvserve.runner.v2 import V2Runner

    class CPURunnerV1(Seeds, V1Runner, cpu_model_runner.CPUModelRunner):
        """V1 runner on CPU."""

    class CPURunnerV2(V2Runner, cpu_model_runner_v2.CPUModelRunner):
        """V2 runner on CPU."""

    class CPUKVWorker(Probed, cpu_worker.CPUWorker):
        """CPU worker. `init_device` names its runner classes, so the names are swapped while it runs."""

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            refuse_unsupported(vllm_config)
            _register("cpu")
            super().__init__(vllm_config, *args, **kwargs)

        def init_device(self) -> None:
            with (
                patch.object(cpu_worker, "CPUModelRunner", CPURunnerV1),
                patch.object(cpu_model_runner_v2, "CPUModelRunner", CPURunnerV2),
            ):
                super().init_device()

    return CPUKVWorker


def _cuda_worker() -> type:
    from vllm.v1.worker import gpu_model_runner, gpu_worker
    from vllm.v1.worker.gpu import model_runner as gpu_model_runner_v2

    from kvserve.runner.v1 import V1Runner
    from kvserve.runner.v2 import V2Runner

    class CUDARunnerV1(V1Runner, gpu_model_runner.GPUModelRunner):
        """V1 runner on CUDA."""

    class CUDARunnerV2(V2Runner, gpu_model_runner_v2.GPUModelRunner):
        """V2 runner on CUDA."""

    class CUDAKVWorker(Probed, gpu_worker.Worker):
        """CUDA worker."""

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            refuse_unsupported(vllm_config)
            _register("cuda")
            super().__init__(vllm_config, *args, **kwargs)

        def _make_model_runner(self) -> Any:
            made = CUDARunnerV2 if self.use_v2_model_runner else CUDARunnerV1
            return made(self.vllm_config, self.device)

    return CUDAKVWorker


def __getattr__(name: str) -> Any:
    if name != "KVWorker":
        raise AttributeError(name)
    globals()[name] = _cpu_worker() if current_platform.is_cpu() else _cuda_worker()
    return globals()[name]

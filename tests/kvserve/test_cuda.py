"""What of the CUDA path can be checked without a GPU: classes, order of mixins, refusals."""

from types import SimpleNamespace

import pytest
from vllm.config import CUDAGraphMode
from vllm.platforms import current_platform

from kvserve.engine import worker
from kvserve.runner import attention
from kvserve.runner.attention import Backends, PhysicalLengths, QueryTap
from kvserve.startup import guard
from tests.kvserve.test_guard import config


@pytest.mark.parametrize("name", Backends.cuda)
def test_backends_extend_the_stock_ones(name):
    backend = getattr(attention, name)
    impl, builder = backend.get_impl_cls(), backend.get_builder_cls()
    assert impl.__mro__[1] is QueryTap
    assert builder.__mro__[1] is PhysicalLengths
    assert not builder.supports_update_block_table
    assert backend.get_name() == backend.__mro__[1].get_name()


@pytest.fixture
def cuda_worker(monkeypatch):
    monkeypatch.setattr(worker, "refuse_unsupported", lambda config: None)
    return worker._cuda_worker()


def test_worker_makes_its_runner_where_vllm_asks_for_one(cuda_worker):
    assert "_make_model_runner" in vars(cuda_worker)


def test_prompts_in_full_graphs_are_refused(monkeypatch):
    plain = config(compilation_config=SimpleNamespace(cudagraph_mode=CUDAGraphMode.FULL))
    guard.refuse_unsupported(plain)  # on CPU there are none, whatever the mode
    monkeypatch.setattr(type(current_platform), "is_cuda_alike", lambda self: True)
    with pytest.raises(guard.UnsupportedError, match="FULL_AND_PIECEWISE"):
        guard.refuse_unsupported(plain)
    for mode in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL_DECODE_ONLY):
        plain.compilation_config.cudagraph_mode = mode
        guard.refuse_unsupported(plain)

"""Unknown versions and combinations that cannot work are refused in one clear sentence."""

from types import SimpleNamespace

import pytest

from kvserve.startup import guard, vllm_0_33


@pytest.fixture(autouse=True)
def _forget():
    guard.problem.cache_clear()
    yield
    guard.problem.cache_clear()


def test_this_vllm_is_known():
    assert guard.problem() is None


def test_unknown_version(monkeypatch):
    monkeypatch.setattr(guard, "vllm_version", lambda: "0.34.0")
    with pytest.raises(guard.UnsupportedError, match=r"vLLM 0\.32\.x and 0\.33\.x, and found 0\.34\.0"):
        guard.verify()


def test_each_version_is_held_to_its_own_signatures(monkeypatch):
    """With the other's number the installed vLLM has the wrong ones."""
    other = "0.32.0" if vllm_0_33.INSTALLED else "0.33.0"
    monkeypatch.setattr(guard, "vllm_version", lambda: other)
    assert "Scheduler._get_local_prefix_cache_hit(self request" in guard.problem()


def test_what_moved_is_found():
    assert all(callable(vllm_0_33.moved(name)) for name in vllm_0_33.MOVED)


def test_changed_signature(monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.setattr(Scheduler, "schedule", lambda self, surprise: None)
    assert "expects (self throttle_prefills)" in guard.problem()


def config(**changes):
    parallel = SimpleNamespace(
        decode_context_parallel_size=1, prefill_context_parallel_size=1, pipeline_parallel_size=1, use_ubatching=False
    )
    model = SimpleNamespace(
        runner_type="generate",
        is_encoder_decoder=False,
        use_mla=False,
        hf_config=SimpleNamespace(),
        hf_text_config=SimpleNamespace(),
    )
    made = SimpleNamespace(
        parallel_config=parallel, model_config=model, speculative_config=None, kv_transfer_config=None,
        cache_config=SimpleNamespace(cache_dtype="auto"), use_v2_model_runner=False,
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=None),
    )  # fmt: skip
    for path, value in changes.items():
        *where, last = path.split("__")
        target = made
        for part in where:
            target = getattr(target, part)
        setattr(target, last, value)
    return made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"speculative_config": SimpleNamespace(method="medusa")}, "speculative decoding by other methods"),
        (
            {"kv_transfer_config": SimpleNamespace(kv_connector="NixlConnector")},
            "KV connector NixlConnector: disaggregated",
        ),
        ({"parallel_config__decode_context_parallel_size": 2}, "decode context parallelism"),
        (
            {
                "parallel_config__pipeline_parallel_size": 2,
                "model_config__hf_text_config": SimpleNamespace(layer_types=["sliding_attention", "full_attention"]),
            },
            "pipeline parallelism of a model that has layers without full attention",
        ),
        (
            {
                "parallel_config__pipeline_parallel_size": 2,
                "parallel_config__distributed_executor_backend": "external_launcher",
            },
            "pipeline parallelism with external_launcher",
        ),
        ({"model_config__use_mla": True}, "MLA"),
        ({"cache_config__cache_dtype": "nvfp4"}, "nvfp4"),
        ({"model_config__hf_config": SimpleNamespace(use_summary_attention=True)}, "kvserve convert-summary"),
        ({"model_config__hf_text_config": SimpleNamespace(model_type="bloom")}, "ALiBi: the kernel's bias"),
        ({"model_config__hf_text_config": SimpleNamespace(model_type="falcon", alibi=True)}, "ALiBi"),
        (
            {
                "scheduler_config__disable_hybrid_kv_cache_manager": True,
                "model_config__hf_text_config": SimpleNamespace(layer_types=["sliding_attention", "full_attention"]),
            },
            "--disable-hybrid-kv-cache-manager",
        ),
    ],
)
def test_combinations_that_cannot_work(change, says):
    with pytest.raises(guard.UnsupportedError, match=says):
        guard.refuse_unsupported(config(**change))


def test_plain_start_is_fine():
    guard.refuse_unsupported(config())
    guard.refuse_unsupported(config(parallel_config__pipeline_parallel_size=2))
    guard.refuse_unsupported(config(speculative_config=SimpleNamespace(method="ngram")))
    falcon = SimpleNamespace(model_type="falcon", alibi=False)
    guard.refuse_unsupported(config(model_config__hf_text_config=falcon))
    only_full = SimpleNamespace(layer_types=["full_attention"] * 2)
    off = {"scheduler_config__disable_hybrid_kv_cache_manager": True, "model_config__hf_text_config": only_full}
    guard.refuse_unsupported(config(**off))

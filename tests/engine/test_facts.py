"""What the engine knows of the loaded model reaches the process that checks requests, however they are connected."""

import pytest
from vllm import envs

from kvserve.policy.types import OtherGroup
from kvserve.startup.facts import facts_of
from tests.engine import harness
from tests.engine.test_hybrid import folder  # noqa: F401


@pytest.mark.parametrize("processes", [0, 1])
def test_the_api_process_knows_what_the_engine_knows(folder, processes, monkeypatch):  # noqa: F811
    """A model of 4 layers with a window of 64 and 2 of full attention, in a process of its own or not."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", str(processes))
    monkeypatch.setitem(envs.environment_variables, "VLLM_WORKER_MULTIPROC_METHOD", lambda: "fork")  # quicker
    llm = harness.start(model=folder, skip_tokenizer_init=True, max_model_len=1024, blocks=512, options={"groups": 2})
    assert hasattr(llm.llm_engine.engine_core, "engine_core") == (not processes)
    facts = facts_of(llm.llm_engine.vllm_config)
    assert (facts.num_layers, facts.groups, facts.block_sizes) == (2, 2, (32, 32))
    assert facts.pool_blocks == 511
    assert facts.pool_tokens == 255 * 32
    most = (63 + 512) // 32 + 2  # the window, one step of tokens, and a block that both ends are inside of
    assert facts.other_groups == (OtherGroup("sliding_window", 32, most),) * 4
    assert facts.rope_problem is None
    harness.stop(llm)

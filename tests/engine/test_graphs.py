"""Which steps vLLM may replay as whole CUDA graphs, and that a replayed step leaves what policies need.

There is no GPU here. vLLM's own dispatcher is asked what it would choose with its default mode; where it says FULL, the
step runs as a replay does: the taps' Python shows nobody anything, and only what a graph copies is left behind.
"""

from collections import defaultdict

import pytest
from vllm.config import CUDAGraphMode

from kvserve.runner import attach, tap
from tests.engine import harness

MODE = CUDAGraphMode.FULL_AND_PIECEWISE
SIZES = [1, 2, 4, 8, 16, 32]
PROMPT, ANSWER = 300, 30


class Dispatches:
    """What vLLM's dispatcher said of each step, by the largest number of tokens that a request had in it."""

    def __init__(self):
        self.now = CUDAGraphMode.NONE
        self.modes = defaultdict(set)

    def note(self, mode, tokens):
        self.now = mode
        self.modes["decode" if tokens == 1 else "prompt"].add(mode)

    def watch(self, runner, monkeypatch):
        """Put this behind the place where a runner's step is dispatched; the step itself runs eagerly."""
        config = runner.vllm_config.compilation_config
        config.cudagraph_capture_sizes, config.max_cudagraph_capture_size = SIZES, SIZES[-1]
        monkeypatch.setattr(tap, "capturing", lambda: self.now == CUDAGraphMode.FULL)
        (self._watch_v2 if harness.is_v2(runner) else self._watch_v1)(runner, monkeypatch)

    def _watch_v1(self, runner, monkeypatch):
        dispatcher = runner.cudagraph_dispatcher
        dispatcher.initialize_cudagraph_keys(MODE, 1)
        stock = dispatcher.dispatch

        def dispatch(num_tokens, uniform_decode=False, **more):
            mode, _ = stock(num_tokens=num_tokens, uniform_decode=uniform_decode, **more)
            self.note(mode, self.largest)
            return stock(num_tokens=num_tokens, valid_modes={CUDAGraphMode.NONE})

        def determine(*args, **more):
            self.largest = more.get("max_num_scheduled_tokens", 0)
            return determined(*args, **more)

        determined = runner._determine_batch_execution_and_padding
        monkeypatch.setattr(dispatcher, "dispatch", dispatch)
        monkeypatch.setattr(runner, "_determine_batch_execution_and_padding", determine)

    def _watch_v2(self, runner, monkeypatch):
        from vllm.v1.worker.gpu import cudagraph_utils, model_runner

        monkeypatch.setattr(type(cudagraph_utils.current_platform), "get_global_graph_pool", lambda self: None)
        manager = cudagraph_utils.CudaGraphManager(runner.vllm_config, runner.device, MODE, decode_query_len=1)
        manager._graphs_captured = True
        stock = model_runner.dispatch_cg_and_sync_dp

        def dispatch(_, num_reqs, num_tokens, uniform, *args, **more):
            self.note(manager.dispatch(num_reqs, num_tokens, uniform, 0).cg_mode, max(1, num_tokens // num_reqs))
            return stock(_, num_reqs, num_tokens, uniform, *args, **more)

        monkeypatch.setattr(model_runner, "dispatch_cg_and_sync_dp", dispatch)


@pytest.fixture(scope="module")
def eager():
    llm = harness.start(max_num_seqs=8, options={"groups": 2})
    found = {policy["name"]: answer(llm, policy) for policy in asked(llm)}
    harness.stop(llm)
    return found


@pytest.fixture(scope="module")
def engine(eager):
    patch = pytest.MonkeyPatch()
    patch.setattr(attach, "captured_tokens", lambda runner: SIZES[-1])
    llm = harness.start(max_num_seqs=8, options={"groups": 2})
    yield llm
    harness.stop(llm)
    patch.undo()


def asked(llm):
    """Every policy at a quarter of the prompt, and compacted again while it answers."""
    return [{**policy, "budget": 64, "slack": 16} for policy in harness.policies(llm)]


def answer(llm, policy):
    """Of one request alone."""
    kv = harness.runner(llm).kv
    kv.selections.clear()
    said = harness.said(harness.generate(llm, [harness.tokens(PROMPT, 7)], [policy], ANSWER)[0])
    return said, [(layer, at, positions.tolist()) for _, layer, at, positions in kv.selections]


def test_decoding_is_replayed_whole_and_answers_alike(engine, eager, monkeypatch):
    for policy in asked(engine):
        with monkeypatch.context() as patch:
            dispatches = Dispatches()
            dispatches.watch(harness.runner(engine), patch)
            assert answer(engine, policy) == eager[policy["name"]], policy
            assert dispatches.modes["decode"] == {CUDAGraphMode.FULL}, policy
            assert CUDAGraphMode.FULL not in dispatches.modes["prompt"], policy
    assert len(eager) > 12


def test_beside_requests_without_a_policy(engine, eager, monkeypatch):
    dispatches = Dispatches()
    dispatches.watch(harness.runner(engine), monkeypatch)
    prompts = [harness.tokens(PROMPT, 7)] * 4
    policies = [None, "snapkv:0.25", "streaming:0.25", "h2o:0.25"]
    harness.generate(engine, prompts, policies, ANSWER)
    assert dispatches.modes["decode"] == {CUDAGraphMode.FULL}


def test_the_end_of_a_prompt_that_is_one_token_is_not_replayed(engine, monkeypatch):
    """vLLM would replay it like a generated token; evidence about a prompt is taken as its layers run."""
    for policy, modes in (
        ("h2o:0.5", {CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL}),
        ("snapkv:0.5", {CUDAGraphMode.FULL}),
    ):
        dispatches = Dispatches()
        with monkeypatch.context() as patch:
            dispatches.watch(harness.runner(engine), patch)
            harness.generate(engine, [harness.tokens(513, 3)], [policy], 8)  # 512 tokens a step
        assert dispatches.modes["decode"] == modes, policy

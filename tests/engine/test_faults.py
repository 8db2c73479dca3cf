"""A policy that fails ends its own request, with an error that says so; the batch goes on.

The plug-in of `tests.engine.raising` fails in each of its methods, the first time that the engine asks it, which is
before or at the end of the prompt, and the last time, which is while the answer is being generated.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvserve.engine.failure import PolicyFailed
from tests.engine import harness, raising, taught
from tests.server.running import forking

BLOCKS = 512
PROMPTS = [harness.tokens(200, seed=i) for i in range(4)]
GOOD = ["snapkv:0.5", None, "h2o:0.5"]
START = "kv_policy 'raising' failed while "


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def llm(request):
    with raising.installed(), harness.scheduling(request.param):
        engine = harness.start(blocks=BLOCKS)
        assert harness.scheduler(engine).vllm_config.scheduler_config.async_scheduling == request.param
        yield engine
        harness.stop(engine)


@pytest.fixture(scope="module")
def right(llm):
    """What the others say when nothing fails."""
    return [harness.said(o) for o in harness.generate(llm, [PROMPTS[0], *PROMPTS[1:]], [asked(""), *GOOD])]


def asked(where, after=0, **more):
    chunks = {"prefill": "chunks"} if where == "chunked_peak" else {}
    fields = {"name": "raising", "budget": 64, "recent": 8, "slack": 16, "where": where, "after": after}
    return {**fields, "key": f"{where}{after}", **chunks, **more}


def calls(llm, where, **more):
    """How often the engine calls it for one request."""
    policy = asked(where, after=10**8, **more)
    harness.generate(llm, [PROMPTS[0]], [policy])
    return raising.CALLS[policy["key"], where]


def served(llm, where, after, **more):
    """The batch with a request that fails; its error, and the outputs of the others."""
    engine, policies = llm.llm_engine, [asked(where, after, **more), *GOOD]
    assert llm.reset_prefix_cache()
    outputs, why = {}, None
    for i, (prompt, policy) in enumerate(zip(PROMPTS, policies, strict=True)):
        try:
            engine.add_request(str(i), {"prompt_token_ids": prompt}, harness.params(policy))
        except PolicyFailed as refused:
            why = str(refused)
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step() if output.finished}
    if why is None:
        failed = outputs["0"].outputs[0]
        assert failed.finish_reason == "error", f"served, with {failed.token_ids}"
        why = failed.stop_reason
        assert outputs["0"].kv_transfer_params["kvserve"]["error"] == why
    return why, [outputs[str(i)] for i in range(1, 4)]


@pytest.mark.parametrize("where", raising.WHERE)
def test_each_method_first_and_last(llm, right, where):
    last = calls(llm, where) - 1
    assert last >= 0, "never called"
    for after in {0, last}:
        why, others = served(llm, where, after)
        assert why.startswith(START)
        assert [harness.said(o) for o in others] == right[1:]
        harness.scheduler(llm).check_integrity()
        assert harness.free_blocks(llm) == BLOCKS - 1
        llm.llm_engine.step()  # tells the worker who has ended
        assert not harness.runner(llm).kv.requests


@pytest.mark.parametrize("more", [{"at": 100}, {"when": "pressure"}], ids=["at", "pressure"])
@pytest.mark.parametrize("where", ["due", "target", "prompt_of"])
def test_at_every_tenth_of_its_calls(llm, right, where, more):
    """The scheduler also asks while it cuts a prompt into chunks, and who could give blocks back."""
    more |= {"key": f"{where}{more}"}
    count = calls(llm, where, **more)
    for tenth in range(10 if count else 0):
        raising.CALLS.clear()
        why, others = served(llm, where, count * tenth // 10, **more)
        assert why.startswith(START)
        assert [harness.said(o) for o in others] == right[1:]
    assert count > 5 or (where, "when" in more) == ("due", True)  # which is not asked under no pressure


def test_it_is_counted(llm):
    totals = harness.scheduler(llm).kv.totals.of("raising")
    before = totals.errors, totals.requests
    served(llm, "select", 0)
    assert (totals.errors, totals.requests) == (before[0] + 1, before[1] + 1)


def test_nothing_is_said_that_came_after_the_fault(llm, right):
    """With everything asked for right up to it: the answer so far is that of the same request if nothing failed."""
    assert llm.reset_prefix_cache()
    [output] = llm.generate({"prompt_token_ids": PROMPTS[0]}, harness.params(asked("due", 20)), use_tqdm=False)
    said = list(output.outputs[0].token_ids)
    assert 0 < len(said) < 40
    assert said == right[0][0][: len(said)]


def test_parts_of_what_has_a_summary(tmp_path):
    """The summaries of all requests are made in one pass, which must not fail because of one."""
    prompts = [harness.tokens(n, seed=n) for n in (150, 170)]
    with raising.installed():
        llm = harness.start(model=taught.model(tmp_path / "model", ["summary"] * 4), blocks=BLOCKS)
        [right] = harness.generate(llm, prompts[1:], ["ksa"])
        failed, other = harness.generate(llm, prompts, ["uneven", "ksa"])
        harness.stop(llm)
    assert failed.outputs[0].stop_reason.startswith("kv_policy 'uneven' failed while ")
    assert harness.said(other) == harness.said(right)


# -- tensor parallelism: it fails on one worker, and the other must not wait for it ---------------------

ON_ONE = {
    **dict.fromkeys(["own_shares", "settled", "own_shares_of"], 0),  # asked once
    **dict.fromkeys(["select", "shape", "scores_nan", "swallow", "more_means"], 0),
    **dict.fromkeys(["consumed", "scores"], 5),  # while generating
}
"""What fails, and after how many calls."""


def tensor_parallel(batches):
    """Finish reason, error and tokens of each and of the good ones, first in each batch, with two workers."""
    llm, found = harness.start(tensor_parallel_size=2), []
    for policies in batches:
        assert llm.reset_prefix_cache()
        prompts = [harness.tokens(100, seed=i) for i in range(len(policies) + len(GOOD))]
        outputs = harness.generate(llm, prompts, GOOD + policies, 24)
        found.append([(o.outputs[0].finish_reason, o.outputs[0].stop_reason, *harness.said(o)) for o in outputs])
    harness.stop(llm)
    return found


def test_tensor_parallel(tmp_path):
    pairs = [(where, rank) for i, where in enumerate(ON_ONE) for rank in ((0, 1) if where == "scores" else (i % 2,))]
    failing = [asked(where, ON_ONE[where], rank=rank, key=f"{where}{rank}") for where, rank in pairs]
    path = os.pathsep.join(filter(None, [raising.plugin(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    alone, among = run([[], failing], env)
    assert among[:3] == alone
    for policy, (reason, why, *_) in zip(failing, among[3:], strict=True):
        assert reason == "error", policy
        assert why.startswith(START), policy
        assert why.endswith("is broken") or policy["where"] in ("shape", "scores_nan", "more_means"), why


def run(batches, env):
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.test_faults", json.dumps(batches)],
        env=forking({**os.environ, **env}), cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(tensor_parallel(json.loads(sys.argv[1]))))

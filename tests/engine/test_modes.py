"""The ways vLLM can run: its two model runners, asynchronous scheduling, processes, tensor parallelism, torch.compile.

Each must say what the plain in-process engine says; those that need another environment or compile run in a process
of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import harness, taught
from tests.engine.interpreted import V2
from tests.server.running import forking

PROMPTS = [harness.tokens(n, seed=n) for n in (300, 450, 620)]
POLICIES = [
    None, "scissorhands:0.25", "snapkv:100", "random:100", "streaming:0.3", "elastic-cache:100", "h2o:100", "tova:100",
    "expected-attention:100", "rkv:100", {"name": "triattention", "budget": 100, "protect_prompt": False}, "ksa",
]  # fmt: skip
SHARED = {"name": "h2o", "budget": 90, "at": 500, "slack": 16, "share": True}
"""Asked twice, one after the other: who makes a compressed prefix, and who starts from it."""
MODES = {
    "async": {"asynchronous": True},
    "processes": {"env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}},
    "processes-async": {"asynchronous": True, "env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}},
    "tensor-parallel": {"engine": {"tensor_parallel_size": 2}, "env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}},
    "compiled": {"engine": {"enforce_eager": False}},
    "no-chunks": {"engine": {"max_num_batched_tokens": 4096}},
    "v2": {"env": V2, "prompts": 1},
    "v2-async": {"asynchronous": True, "env": V2},
    "v2-tensor-parallel": {"engine": {"tensor_parallel_size": 2}, "env": {**V2, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}},
    "groups": {"options": {"groups": 4}},
}

SLOW = ["processes", "processes-async", "v2-async", "v2-tensor-parallel"]  # tensor-parallel has processes too
ELSEWHERE = [mode for mode, setting in MODES.items() if "env" in setting or mode == "compiled"]


def answers(model, asynchronous=False, engine=None, options=None, prompts=3):
    """Of the last prompts with every policy, in one batch, and then with a prefix that is shared.

    Tokens and log-probabilities; compactions and tokens of a shared prefix.
    """
    with harness.scheduling(asynchronous):
        llm = harness.start(model=model, options=options, **(engine or {}))
    texts = [p for p in PROMPTS[-prompts:] for _ in POLICIES]
    outputs = harness.generate(llm, texts, POLICIES * prompts, 60)
    for _ in range(2):
        outputs += harness.generate(llm, PROMPTS[-1:], [SHARED], 60, warm=True)
    said = [harness.said(o) for o in outputs]
    usages = [(o.kv_transfer_params or {}).get("kvserve", {}) for o in outputs]
    counts = [[usage.get(name, 0) for name in ("compactions", "shared_tokens")] for usage in usages]
    harness.stop(llm)
    return said, counts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return taught.model(tmp_path_factory.mktemp("modes") / "model", ["summary"] * 4)


@pytest.fixture(scope="module")
def plain(model):
    return answers(model)


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.slow) if mode in SLOW else mode for mode in MODES]
)
def test_same_answers(mode, model, plain):
    assert [shared for _, shared in plain[1][-2:]] == [0, SHARED["at"]]
    said, counts = (elsewhere if mode in ELSEWHERE else answers)(model, **MODES[mode])
    expected, expected_counts = (part[-len(said) :] for part in plain)
    assert counts == expected_counts
    for (tokens, logps), (ref_tokens, ref_logps) in zip(said, expected, strict=True):
        assert tokens == ref_tokens
        assert max(abs(a - b) for a, b in zip(logps, ref_logps, strict=True)) < 1e-4


def elsewhere(model, env=None, **setting):
    """`answers`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.test_modes", json.dumps({"model": str(model), **setting})],
        env=forking({**os.environ, **(env or {})}),
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(answers(**json.loads(sys.argv[1]))))

"""Pipeline parallelism: two stages say what one process says, and what fails on a stage ends its own request only.

The engine's scheduler is in this process, the stages are in two others, which find the plug-in of
`tests.engine.raising` by its entry point.
"""

from unittest.mock import patch

import pytest
from vllm.exceptions import VLLMValidationError

from kvserve.startup.bundles import bundled
from tests.engine import harness, raising
from tests.engine.fuzz import Traffic
from tests.engine.test_faults import asked
from tests.engine.test_pool import count_preemptions, drain
from tests.engine.test_preempted import LENGTH, PROMPT

BLOCKS = 1024
GROUPS = 2
ENGINE = {"blocks": BLOCKS, "max_num_batched_tokens": 256, "options": {"groups": GROUPS}}
PROMPTS = [harness.tokens(n, seed=n) for n in (300, 450, 620)]
REFUSED = {
    "ksa": "computes summary tokens through all layers .* on 2 pipeline stages",
    "kvzip": "has the model repeat the prompt, which cannot be done here: .* on several pipeline stages",
    "prefixkv": "decides by the evidence of all layers together, but .* on 2 pipeline stages",
    "triattention": "with mode 'per_head' counts votes of all layers, but .* send mode 'per_layer_per_head'",
}
WRAPPED = {"criticalkv": {"of": "kvzip"}}
BY_LAYER = {"name": "triattention", "mode": "per_layer_per_head", "protect_prompt": False}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    site = tmp_path_factory.mktemp("stages") / "site"
    raising.plugin(site)
    with raising.installed(), pytest.MonkeyPatch.context() as environment:
        environment.syspath_prepend(site)  # spawned processes have the search path of this one, not PYTHONPATH
        environment.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        engine = harness.start(pipeline_parallel_size=2, **ENGINE)
        yield engine
        harness.stop(engine)


@pytest.fixture(scope="module")
def alone():
    """One process, with the groups of two stages: each has a layer of the first half and one of the second."""
    with raising.installed(), patch("kvserve.runner.base.bundled", lambda counts, *rest: bundled([2, 2], *rest)):
        engine = harness.start(**ENGINE)
        yield engine
        harness.stop(engine)


def fields(llm):
    """Every policy that is served, and other moments to compress at."""
    served = [each for each in harness.policies(llm) if each["name"] != "raising"]
    assert not REFUSED.keys() & {each["name"] for each in served}
    every = [{**each, "budget": 100, "slack": 32} for each in [*served, BY_LAYER]]
    return [None, *every, {"name": "snapkv", "at": 170}]


def said(llm, policies):
    outputs = harness.generate(llm, [p for p in PROMPTS for _ in policies], policies * len(PROMPTS), 60)
    return [(harness.said(o), (o.kv_transfer_params or {}).get("kvserve")) for o in outputs]


def nothing_is_left(llm):
    drain(llm)
    harness.scheduler(llm).check_integrity()
    assert harness.free_blocks(llm) == BLOCKS - 1


def test_facts_are_those_of_the_whole_model(llm, alone):
    facts, whole = harness.scheduler(llm).kv.facts, harness.scheduler(alone).kv.facts
    problems = {name: getattr(facts, name) for name in ("side_pass_problem", "share_problem")}
    assert all("pipeline stages" in problem for problem in problems.values())
    assert facts == whole._replace(pipeline_parallel=2, **problems)
    assert harness.scheduler(llm).kv.layers == [(0, 2), (1, 3)] == harness.scheduler(alone).kv.layers
    assert harness.scheduler(llm).kv.totals.pool_bytes == harness.scheduler(alone).kv.totals.pool_bytes


def test_same_tokens(llm, alone):
    policies = fields(llm)
    assert len(policies) > 15
    for policy, (was, record), (now, again) in zip(
        policies * len(PROMPTS), said(alone, policies), said(llm, policies), strict=True
    ):
        assert now[0] == was[0], policy
        assert max(abs(a - b) for a, b in zip(now[1], was[1], strict=True)) < 1e-3, policy
        if policy is not None:
            assert again.pop("merged_tokens") == pytest.approx(record.pop("merged_tokens"))
            assert again == record
            assert record["compactions"] >= 1, policy
    nothing_is_left(llm)


def test_same_tokens_between_chunks(llm, alone):
    """A request by itself, as the ends of chunks depend on what else is running."""
    policy = {"name": "h2o", "budget": 0.3, "prefill": "chunks"}
    for prompt in PROMPTS:
        was, now = (harness.generate(each, [prompt], [policy], 40)[0] for each in (alone, llm))
        assert harness.said(now)[0] == harness.said(was)[0]
        assert harness.outcome(now)["compactions"] == harness.outcome(was)["compactions"] > 1


@pytest.mark.parametrize("name", [*REFUSED, *WRAPPED])
def test_refused_by_name(llm, name):
    policy, says = {"name": name, **WRAPPED.get(name, {})}, REFUSED.get(name, REFUSED["kvzip"])
    with pytest.raises(VLLMValidationError, match=says):
        harness.generate(llm, [PROMPTS[0]], [policy], 1)


def test_a_fault_on_a_stage_ends_its_own_request(llm, alone):
    good = ["snapkv:0.5", None, "h2o:0.5"]
    prompts = [harness.tokens(100, seed=i) for i in range(3)]
    right = [harness.said(o)[0] for o in harness.generate(alone, prompts, good, 24)]
    wrong = [("select", 0), ("consumed", 3), ("scores_nan", 0), ("choose", 1)]
    failing = [asked(where, after, stage=s, key=f"{where}{s}") for where, after in wrong for s in (0, 1)]
    outputs = harness.generate(llm, prompts + [harness.tokens(100, seed=9 + i) for i in range(8)], good + failing, 24)
    assert [harness.said(o)[0] for o in outputs[:3]] == right
    for policy, output in zip(failing, outputs[3:], strict=True):
        assert output.outputs[0].finish_reason == "error", policy
        why = output.outputs[0].stop_reason
        assert why.startswith("kv_policy 'raising' failed while "), policy
        assert why.endswith("is broken") or (policy["where"] == "scores_nan" and "not installed" not in why), why
    totals = harness.scheduler(llm).kv.totals.of("raising")
    assert totals.errors == len(failing)
    nothing_is_left(llm)


def run(llm, policies, preempt_after=()):
    """Of requests that run together, and are preempted after these steps: their outputs."""
    engine = llm.llm_engine
    assert llm.reset_prefix_cache()
    for i, policy in enumerate(policies):
        engine.add_request(str(i), {"prompt_token_ids": PROMPT}, harness.params(policy, LENGTH))
    step, found = 0, {}
    while engine.has_unfinished_requests():
        found |= {output.request_id: output for output in engine.step() if output.finished}
        step += 1
        if step in preempt_after:
            engine.reset_prefix_cache(reset_running_requests=True)
        harness.scheduler(llm).check_integrity()
    return [found[str(i)] for i in range(len(policies))]


def test_same_after_preemptions(llm, alone):
    policies = [None, *({"name": name, "budget": 100, "slack": 32} for name in ("streaming", "h2o", "tova", "rkv"))]
    policies.append({"name": "snapkv", "budget": 0.3, "at": 170})
    expected = run(alone, policies)
    for policy, was, now in zip(policies, expected, run(llm, policies, (2, 5, 60, 61, 122, 200, 321)), strict=True):
        assert now.outputs[0].token_ids == was.outputs[0].token_ids, policy
        if policy is not None:
            assert harness.outcome(now)["compactions"] == harness.outcome(was)["compactions"]
    nothing_is_left(llm)


class Unwatched(Traffic):
    """What the stages hold cannot be seen from here."""

    def policy(self):
        chosen = super().policy()
        return {**chosen, "mode": "per_layer_per_head"} if chosen and "mode" in chosen else chosen

    def check(self):
        harness.scheduler(self.llm).check_integrity()


def traffic_says_the_same(llm, alone, seed, requests):
    """On a pool that is too small for it; what does not depend on load is said by each request alone too."""
    pool = harness.scheduler(llm).kv_cache_manager.block_pool
    assert llm.reset_prefix_cache()
    away = pool.get_new_blocks(pool.get_num_free_blocks() - 28 * GROUPS)
    preempted = count_preemptions(llm)
    traffic = Unwatched(llm, seed)
    traffic.run(requests)
    assert preempted["count"] > 0
    assert set(traffic.answers) | traffic.aborted == set(traffic.sent)
    pool.free_blocks(away)
    nothing_is_left(llm)
    for req_id, tokens in traffic.answers.items():
        prompt, policy, length = traffic.sent[req_id]
        assert len(tokens) == length
        if policy is None or policy.get("prefill") != "chunks":
            [output] = harness.generate(alone, [prompt], [policy], length)
            assert harness.said(output)[0] == tokens, (req_id, policy)


def test_traffic(llm, alone):
    traffic_says_the_same(llm, alone, 5, 25)


@pytest.mark.slow
def test_more_traffic(llm, alone):
    for seed in (1, 2):
        traffic_says_the_same(llm, alone, seed, 80)

"""2,000 requests of all kinds on pools that are too small for them, over six shapes: no wrong token, no dead engine, no
hang, no lost block, while a plug-in raises among them."""

import random

import pytest

from tests.engine import harness, raising
from tests.engine.fuzz import Traffic
from tests.engine.test_pool import count_preemptions, drain
from tests.zoo.making import write
from tests.zoo.served import SETTINGS
from tests.zoo.shapes import SHAPES

POOLS = {"llama-gqa": 60, "gemma2": 100, "gpt-oss": 100, "cohere2": 100, "gptj": 60, "qwen3-next": 60}
"""Shape -> blocks: three of them have windows, one a recurrent state."""
REQUESTS = 334
SAMPLE = {"gemma2": 90}


class Mixed(Traffic):
    """With seeds, compaction inside the prompt, and a policy that fails."""

    def policy(self):
        if self.random.random() < 0.07:
            where = self.random.choice([w for w in raising.WHERE if w not in ("validator", "check", "salt", "settled")])
            return {
                "name": "raising", "budget": 64, "recent": 8, "slack": 16, "where": where,
                "after": self.random.choice([0, 0, 3, 20]), "key": str(len(self.sent)),
            }  # fmt: skip
        return super().policy()

    def params(self, req_id):
        made = super().params(req_id)
        drawn = random.Random(req_id)
        if drawn.random() < 0.3:
            made.temperature, made.seed = 1.0, drawn.randrange(1000)
        return made

    def send(self):
        try:
            super().send()
        except Exception as refused:  # at the front door: a policy that fails while the request is checked
            if "raising" not in str(refused):
                raise
            self.aborted.add(f"{self.name}-{len(self.sent) - 1}")

    def right(self, count):
        """Requests that say the same in a crowd and alone, whatever chunks and neighbours they had."""
        found = []
        for req_id in self.answers:
            policy = self.sent[req_id][1] or {}
            settled = policy.get("when") != "pressure" and policy.get("prefill") != "chunks"
            if settled and policy.get("name") != "raising":
                found.append(req_id)
        return self.random.sample(found, min(count, len(found)))


def cases():
    for name in POOLS:
        if name in SAMPLE:
            yield pytest.param(name, SAMPLE[name], id=f"{name}-sample")
        yield pytest.param(name, REQUESTS, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "requests"), cases())
def test_traffic(name, requests, tmp_path):
    shape = SHAPES[name]
    settings = {**SETTINGS, "model": write(shape, tmp_path / name), **shape.engine}
    with raising.installed():
        llm = harness.start(**{**settings, "max_model_len": 1024, "blocks": POOLS[name]})
        before, preempted = harness.free_blocks(llm), count_preemptions(llm)
        traffic = Mixed(llm, seed=requests, prefix=name)
        traffic.run(requests)
        drain(llm)
        assert harness.free_blocks(llm) == before
        assert not harness.runner(llm).kv.requests and not len(harness.runner(llm).kv.queries)
        assert set(traffic.answers) | traffic.aborted == set(traffic.sent)
        assert preempted["count"] > 0
        failed = [r for r, (_, policy, _) in traffic.sent.items() if (policy or {}).get("name") == "raising"]
        for req_id, tokens in traffic.answers.items():
            assert req_id in failed or len(tokens) == traffic.sent[req_id][2], req_id
        totals = harness.scheduler(llm).kv.totals.policies
        assert totals["raising"].errors > 0
        assert sum(policy.compactions for policy in totals.values()) > requests / 4
        if shape.exact:
            _alone(llm, traffic, requests // 6)
        harness.stop(llm)


def _alone(llm, traffic, count):
    """What these requests said in the crowd they say alone, with an empty prefix cache."""
    wrong = []
    for req_id in traffic.right(count):
        assert llm.reset_prefix_cache()
        prompt = {"prompt_token_ids": traffic.sent[req_id][0]}
        [alone] = llm.generate([prompt], [traffic.params(req_id)], use_tqdm=False)
        if list(alone.outputs[0].token_ids) != traffic.answers[req_id]:
            wrong.append((req_id, traffic.sent[req_id][1]))
    assert not wrong

"""Which policies are measured, and how requests name them."""

from bench.gathering import gathering
from bench.policies import comparable, refusals
from kvserve.policy import Facts, registry

FACTS = Facts(num_layers=4, groups=4, block_size=32, pool_tokens=1 << 14, max_model_len=8192, chunk=512)


def test_every_budget_holds_for_prompt_and_answer_alike() -> None:
    assert comparable("streaming") == {"name": "streaming"}
    assert comparable("snapkv") == {"name": "snapkv", "decode": True}
    assert comparable("triattention") == {"name": "triattention", "protect_prompt": False}


def test_what_a_server_lacks_is_the_reason_of_a_refusal() -> None:
    assert "--kv-calibration" in refusals(FACTS)["triattention"]
    assert not {"prefixkv", "pyramidkv"} & set(refusals(FACTS._replace(groups=1)))  # they take the mean


def test_policies_that_gather_are_timed_with_fewer_queries_too() -> None:
    policies = {name: comparable(name) for name, policy in registry.installed().items() if policy.compresses}
    found = gathering(policies, (1, 4))
    assert found["h2o every 4"] == {"name": "h2o", "every": 4}
    assert found["expected-attention"] == {"name": "expected-attention"}
    assert not any(case.startswith("snapkv") for case in found)

"""What a policy needs of a server and of requests, found out from the class itself.

Requirements are asked of `check`: with facts of a server that has everything, and of servers that lack one thing.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from kvserve.policy import Facts, Policy, Summaries
from kvserve.policy.errors import PolicyError
from kvserve.policy.requirements import Asks

COMPLETE = Facts(
    num_layers=4,
    groups=4,
    block_size=16,
    pool_tokens=1 << 16,
    max_model_len=1 << 14,
    chunk=2048,
    calibrated=("queries", "prefixkv"),
    summaries=Summaries(8, 8, ("summary", "full", "summary", "summary")),
)
LACKING: dict[str, dict[str, Any]] = {
    "a group per layer: `--kv-groups` = number of layers": {"groups": 1},
    "a calibration file: `--kv-calibration FILE`, made by `kvserve calibrate MODEL -o FILE`": {"calibrated": ()},
    "a model whose rotation of queries and keys (RoPE), if any, can be found out": {"rope_problem": "it cannot"},
    "a model that rotates them in every compressible layer": {"unrotated": 1},
    "a model whose layers project attention's output by a plain linear module": {"output_problem": "it cannot"},
    "a model whose prompts can be repeated: all caches compressible, a tokenizer, no LoRA": {"side_pass_problem": "no"},
    "all KV heads in one worker (tensor parallelism 1)": {"tensor_parallel": 2},
    "a model with summary parameters: `kvserve train-summary` or `convert-summary`": {"summaries": None},
}
"""Requirement -> facts of a server that does not meet it."""

EVIDENCE = {
    "keys": "cached keys",
    "values": "cached values",
    "queries": "the last queries",
    "mass": "attention mass",
    "moments": "mean and covariance of the queries before RoPE",
    "calibration": "the calibration file",
    "rope": "how the model rotates queries and keys (RoPE)",
    "summaries": "the summary tokens that the model makes of text",
    "output_weight": "the layer's output projection",
    "repeated": "the attention that tokens get while the model repeats the prompt",
}


def needs(cls: type[Policy]) -> list[str]:
    """One sentence each."""
    policy = cls.model_validate({})
    if not policy.compresses:
        return ["Nothing."]
    asks = Asks.of(policy)
    found = [f"Reads {_listed([EVIDENCE[one.name] for one in asks.evidence]) or 'positions only'}."]
    if asks.query_window:
        many = f"{asks.query_window} queries" if asks.query_window > 1 else "query"
        found.append(f"Captures the last {many} of each request (with the defaults).")
    if asks.gathers:
        whose = "the prompt's queries" if asks.observes == "prompt" else "all queries, of generated tokens too"
        found.append(f"Gathers from {whose}: computes its whole prompt, so it takes no prefix-cache hit.")
    if asks.side_pass:
        found.append("Has the model repeat the prompt before it is compressed.")
    found.append("KV heads choose for themselves." if policy.per_head else "All heads of a layer keep the same tokens.")
    return [*found, *(f"Needs {text}." for text in requirements(cls))]


def requirements(cls: type[Policy]) -> list[str]:
    """What a server must have, with the parameters on which that depends."""
    found = []
    for what, lack in LACKING.items():
        facts = COMPLETE._replace(**lack)
        others = [shown for shown, policy in _others(cls) if refused(policy, facts) != refused(_plain(cls), facts)]
        if refused(_plain(cls), facts):
            found.append(what + (f" (not with {_listed(others)})" if others else ""))
        elif others:
            found.append(f"{what}, only with {_listed(others)}")
    return found


def refused(policy: Policy, facts: Facts) -> bool:
    try:
        policy.check(facts)
    except PolicyError:
        return True
    return False


def _plain(cls: type[Policy]) -> Policy:
    return cls.model_validate({})


def _others(cls: type[Policy]) -> Iterator[tuple[str, Policy]]:
    """How a parameter differs from its default, and the policy with that; as many as validate."""
    for name, schema in cls.model_json_schema()["properties"].items():
        for value in _values(schema):
            shown = f"`{name}: {value}`" if isinstance(value, str) else f"`{name}` above its default"
            try:
                yield shown, cls.model_validate({name: value})
            except (PolicyError, ValidationError):
                continue


def _values(schema: dict[str, Any]) -> list[Any]:
    if "anyOf" in schema:
        return [value for one in schema["anyOf"] for value in _values({"default": schema.get("default"), **one})]
    if "enum" in schema:
        return [value for value in schema["enum"] if value != schema.get("default")]
    return [schema["maximum"]] if "maximum" in schema and schema["maximum"] != schema.get("default") else []


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))

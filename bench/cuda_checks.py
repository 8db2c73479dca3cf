"""(a) of `python -m bench.cuda`: the same requests with and without CUDA graphs, and with stock vLLM."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

STOCK, EAGER, GRAPHS = CASES = ("stock", "eager", "graphs")
PROMPT, ANSWER, BUDGET, SLACK = 900, 64, 0.25, 16
LAYERS = 4
"""Of the embedded model; each has block tables of its own, so that policies with uneven layers run too."""
HEADING = (
    f"(a) The embedded model, {PROMPT} tokens and {ANSWER} generated, budget {BUDGET}. Graphs: decode steps that were "
    "replayed as a whole, of all decode steps; same answer, same kept: with graphs as without them, alone and in a "
    "batch of all rows; difference: the largest one of log-probabilities. Where evidence is taken while layers run, "
    "decode steps are not replayed."
)


class GpuAnswer(NamedTuple):
    tokens: list[int]
    logprobs: list[float]
    record: dict[str, Any]  # usage.kv_cache
    kept: list[Any]  # (layer, tokens seen, positions that stay) of each compaction
    replayed: int = 0
    decoded: int = 0


class Found(NamedTuple):
    """What one engine answered: no policy and every policy, alone and as one batch."""

    alone: dict[str, GpuAnswer]
    batch: dict[str, GpuAnswer]
    plain: list[GpuAnswer]  # a batch without policies
    refused: dict[str, str]


def answered(case: str, backend: str, dtype: str) -> Found:
    """In a process of its own."""
    if case == STOCK:
        os.environ["VLLM_PLUGINS"] = ""
    from bench.engine import BenchEngine
    from bench.policies import comparable, refusals
    from kvserve.policy import registry
    from models import MINI

    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32]}
    engine = BenchEngine(
        MINI, kv=case != STOCK, groups=LAYERS, blocks=8192, max_len=2048, chunk=2048, dtype=dtype, load_format="auto",
        kv_cache_memory_bytes=2**31, attention_config={"backend": backend}, enforce_eager=case == EAGER,
        compilation_config={} if case == EAGER else graphs,
    )  # fmt: skip
    asked: dict[str, Any] = {"none": None}
    refused: dict[str, str] = {}
    if case != STOCK:
        engine.compactor.selections = []
        refused = refusals(engine.scheduler.kv.facts)
        names = [name for name, cls in registry.installed().items() if cls.compresses and name not in refused]
        asked |= {name: {**comparable(name), "budget": BUDGET, "slack": SLACK} for name in names}
    try:
        alone = {name: ask(engine, [policy])[0] for name, policy in asked.items()}
        batch = dict(zip(asked, ask(engine, list(asked.values())), strict=True))
        return Found(alone, batch, ask(engine, [None] * 8), refused)
    finally:
        engine.stop()


def ask(engine: Any, policies: list[Any]) -> list[GpuAnswer]:
    """One greedy batch with an empty prefix cache, each request with a prompt of its own."""
    from vllm import SamplingParams

    from bench.engine import prompt

    engine.forget()
    params = [
        SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, detokenize=False, logprobs=1,
                       extra_args={"kv_policy": policy, "kv_call": "bench"} if policy else None)
        for policy in policies
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": prompt(PROMPT, i)} for i in range(len(policies))]
    with replays(engine) as counted:
        outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    kept = selections(engine)
    return [_answer(output, kept, *counted) for output in outputs]


def _answer(output: Any, kept: list[Any], replayed: int, decoded: int) -> GpuAnswer:
    only = output.outputs[0]
    tokens = list(only.token_ids)
    said = [step[token].logprob for step, token in zip(only.logprobs, tokens, strict=True)]
    record = (output.kv_transfer_params or {}).get("kvserve", {})
    if only.finish_reason == "error":
        record = {"error": str(only.stop_reason)}
    mine = [each[1:] for each in kept if each[0].startswith(output.request_id)]
    return GpuAnswer(tokens, said, record, mine, replayed, decoded)


def selections(engine: Any) -> list[Any]:
    compactor = getattr(engine.runner, "kv", None)
    if compactor is None:
        return []
    taken, compactor.selections = compactor.selections, []
    return [(each.req_id, each.layer, each.logical, each.positions.tolist()) for each in taken]


@contextmanager
def replays(engine: Any) -> Iterator[list[int]]:
    """Counts [graphs replayed, steps of one token each] while inside."""
    import torch

    counted, inside, replay = [0, 0], engine.runner, torch.cuda.CUDAGraph.replay
    execute = inside.execute_model

    def replaying(self: Any) -> None:
        counted[0] += 1
        replay(self)

    def executing(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        counted[1] += set(scheduled.num_scheduled_tokens.values()) == {1}
        return execute(scheduled, *args, **kwargs)

    torch.cuda.CUDAGraph.replay, inside.execute_model = replaying, executing  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        torch.cuda.CUDAGraph.replay, inside.execute_model = replay, execute  # type: ignore[method-assign]


def compared(found: dict[str, Found]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and sentences of what is not as it must be."""
    stock, eager, graphs = (found[case] for case in CASES)
    rows, failures = [], []
    for name, answer in graphs.alone.items():
        pairs = [(answer, eager.alone[name]), (graphs.batch[name], eager.batch[name])]
        same = [a.tokens == b.tokens and "error" not in a.record for a, b in pairs]
        kept = [a.kept == b.kept for a, b in pairs]
        worst = max(abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True))
        record = answer.record
        rows.append({
            "policy": name, "kept": record.get("kept_tokens"), "of": record.get("logical_tokens"),
            "bytes": record["resident_bytes"] / record["full_bytes"] if "full_bytes" in record else None,
            "compactions": record.get("compactions"), "graphs": f"{answer.replayed} of {answer.decoded}",
            "same answer": yes(same), "same kept": yes(kept), "difference": worst,
        })  # fmt: skip
        if not all(same + kept):
            failures.append(f"{name}: with graphs it is not what it is without them")
        if "error" in record:
            failures.append(f"{name}: {record['error']}")
    same, exact = ([getattr(a, field) == getattr(b, field) for a, b in zip(graphs.plain, stock.plain, strict=True)]
                   for field in ("tokens", "logprobs"))  # fmt: skip
    rows.append({"policy": "none, against stock vLLM", "same answer": yes(same), "bit for bit": yes(exact)})
    if not all(same + exact):
        failures.append("requests without a policy answer other than stock vLLM")
    return rows, failures


def yes(all_of: list[bool]) -> str:
    return "yes" if all(all_of) else f"{sum(all_of)} of {len(all_of)}"

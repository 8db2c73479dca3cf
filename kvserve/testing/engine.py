"""The checks that need an engine: one request after the other, and several at once, on a small model."""

import gc
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

from kvserve.channels import Asked
from kvserve.policy import Policy, request
from kvserve.policy.errors import PolicyError
from kvserve.testing.checks import Result, found, with_budget

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that scheduler and worker can be looked into
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",  # a tiny model gains nothing from more
}
CHUNK, PROMPT, GENERATED = 512, 900, 20
ALIKE = 0.99
"""Share of the tokens kept that must be the same when a prompt is read in other chunks: the last bits of queries differ
then, and two tokens with almost equal scores may change places."""


def run(policy: Policy, model: str) -> Iterator[Result]:
    """Start an engine with this model and check the policy in it. `model`: a folder."""
    if not policy.compresses:
        return
    engine = Engine(model)
    try:
        yield from engine.results(policy)
    finally:
        engine.stop()


class Engine:
    """A vLLM engine in this process, with kvserve's scheduler and worker."""

    def __init__(self, model: str) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        self.llm = LLM(
            model, dtype="float32", max_model_len=2048, max_num_seqs=8, max_num_batched_tokens=CHUNK,
            enforce_eager=True, kv_cache_memory_bytes=2**28, disable_log_stats=True,
            scheduler_cls="kvserve.engine.scheduler.KVScheduler", worker_cls="kvserve.engine.worker.KVWorker",
            additional_config={"kvserve": {"trace": True}},
        )  # fmt: skip
        core: Any = self.llm.llm_engine.engine_core
        self.core = core.engine_core
        self.words = self.llm.get_tokenizer().vocab_size

    def stop(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm, self.core
        gc.collect()

    def results(self, policy: Policy) -> Iterator[Result]:
        """What each check says; one line if this model cannot serve the policy."""
        try:
            policy.check(self.core.scheduler.kv.facts)
        except PolicyError as error:
            yield Result("engine", "on this model", "skipped", str(error))
            return
        for check in (same_answer, blocks_given_back, alone_and_among_others):
            if policy.budgeted or check is not same_answer:
                yield found(check, policy, self)

    # -- asking ----------------------------------------------------------------------------------------

    def prompt(self, tokens: int, seed: int) -> list[int]:
        """Random token ids, without the first ones, which are often special."""
        return [random.Random(f"{seed}/{i}").randrange(10, self.words - 10) for i in range(tokens)]

    def answers(self, prompts: Sequence[list[int]], policies: Sequence[Policy | None]) -> list[Any]:
        """One batch, greedy, with an empty prefix cache; vLLM's outputs. Raises RuntimeError if a policy fails."""
        from vllm import SamplingParams

        assert self.llm.reset_prefix_cache()
        self.core.model_executor.driver_worker.worker.model_runner.kv.selections.clear()
        asked = [Asked(request.dump(each), "").into() if each else None for each in policies]
        params = [
            SamplingParams(temperature=0, max_tokens=GENERATED, ignore_eos=True, logprobs=1, extra_args=extra)
            for extra in asked
        ]
        outputs = self.llm.generate([{"prompt_token_ids": each} for each in prompts], params, use_tqdm=False)
        for output in outputs:
            if output.outputs[0].finish_reason == "error":
                raise RuntimeError(output.outputs[0].stop_reason)
        return outputs

    def kept(self, output: Any) -> list[set[tuple[int, int]]]:
        """(KV head, position) of the tokens kept, for each selection made for this request."""
        made = self.core.model_executor.driver_worker.worker.model_runner.kv.selections
        mine = sorted((each for each in made if each.req_id.startswith(output.request_id)), key=lambda s: s[1:3])
        return [{(h, at) for h, row in enumerate(each.positions.tolist()) for at in row} for each in mine]

    def free_blocks(self) -> int:
        return int(self.core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def same_answer(policy: Policy, engine: Engine) -> None:
    """U1: with a budget of at least the length, tokens and log-probabilities are those without a policy."""
    prompt = engine.prompt(PROMPT, 1)
    plain, with_policy = (
        engine.answers([prompt], [each])[0].outputs[0] for each in (None, with_budget(policy, PROMPT + GENERATED))
    )
    assert plain.token_ids == with_policy.token_ids, "the answer is another one"
    assert plain.cumulative_logprob == with_policy.cumulative_logprob, "the log-probabilities are other ones"


def blocks_given_back(policy: Policy, engine: Engine) -> None:
    """U8: it holds fewer blocks than the whole prompt takes, and afterwards all blocks are free."""
    policy = with_budget(policy, 0.25) if policy.budgeted else policy
    before = engine.free_blocks()
    [output] = engine.answers([engine.prompt(PROMPT, 2)], [policy])
    engine.core.scheduler.check_integrity()
    record = output.kv_transfer_params["kvserve"]
    lost = before - engine.free_blocks()
    assert not lost, f"{lost} blocks were not given back"
    assert record["compactions"], "nothing was compacted"
    assert record["resident_bytes"] < record["full_bytes"], f"no block was given up: {record}"


def alone_and_among_others(policy: Policy, engine: Engine) -> None:
    """U6, U7: the same tokens stay beside other requests, which cut the prompt into other chunks."""
    policy = with_budget(policy, 0.25) if policy.budgeted else policy
    prompt, others = engine.prompt(PROMPT, 3), [engine.prompt(333, 4), engine.prompt(77, 5)]
    alone = engine.kept(engine.answers([prompt], [policy])[0])
    among = engine.kept(engine.answers([others[0], prompt, others[1]], [None, policy, None])[1])
    assert alone and len(alone) == len(among), f"{len(alone)} selections alone, {len(among)} among others"
    alike = sum(len(a & b) for a, b in zip(alone, among, strict=True)) / sum(map(len, alone))
    assert alike >= ALIKE, f"of the tokens kept {alike:.1%} are the same"

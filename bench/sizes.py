"""How large everything measured is; `SHORT` has fewer tokens in (e), `QUICK` only proves that the bench runs."""

from dataclasses import dataclass, replace

BLOCK = 32
"""Tokens per KV block."""

BUDGET = 512
"""Tokens kept per layer by the compressing cases."""

SLACK = 128
"""The policies' default: while decoding, compactions lie this many tokens apart."""


@dataclass(frozen=True)
class BenchSizes:
    """Lengths in tokens unless said otherwise."""

    layers: int = 4
    heads: int = 4  # KV heads, as many query heads, of 128 dimensions
    hidden: int = 256
    chunk: int = 512  # tokens per step at most (vLLM's max_num_batched_tokens)

    batch: int = 8  # requests of (a), of the larger case of (d), and of the timed pool of (c)
    overhead_prompt: int = 256
    overhead_block: int = 5  # steps of one engine before the other takes its turn
    overhead_pairs: int = 48  # such turns per repetition
    overhead_control: bool = True  # a second stock engine, which shows what noise alone does

    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192)
    context_steps: int = 32

    pool_prompt: int = 4096
    pool_output: int = 256
    pool_holds: int = 3  # uncompressed requests
    crowd: int = 20  # requests that compete for the pool where only concurrency is counted
    crowd_output: int = 256  # long enough that none ends before the pool is full

    compaction_prompt: int = 2048
    compaction_output: int = 512

    policy_prompts: tuple[int, ...] = (1024, 2048, 4096)  # of (e)
    policy_budgets: tuple[float, ...] = (0.5, 0.25, 0.125)
    policy_output: int = 1000
    policy_repeats: int = 2  # at most: (e) has more than a hundred cases

    gather_prompt: int = 4096  # of (f)
    gather_every: tuple[int, ...] = (1, 2, 4, 8)  # each n-th query of the prompt gathers attention mass
    gather_chunk: int = 2048
    wide_hidden: int = 4096  # of a layer in the shape of an 8B model
    wide_repeats: int = 3  # at most: a prefill of it takes ten seconds

    summary_prompts: tuple[int, ...] = (512, 1024, 2048, 3072)  # of (g)
    summary_batches: tuple[int, ...] = (1, 4)  # requests
    summary_output: int = 257

    width: int = 256  # requests of (h)
    width_prompt: int = 64  # of the shortest of them, and what compressed ones keep
    width_slack: int = SLACK
    width_block: int = 8  # steps of one engine before the next takes its turn
    width_pairs: int = 24  # such turns per repetition

    budget: int = BUDGET

    def __post_init__(self) -> None:
        if min(self.contexts) < 2 * self.budget:
            raise ValueError(f"contexts {self.contexts} must be at least twice the budget {self.budget}")

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values per token, float32."""
        return self.layers * self.heads * 128 * 2 * 4


FULL_RUN = BenchSizes()
SHORT = replace(FULL_RUN, policy_output=200, policy_repeats=1)
QUICK = BenchSizes(
    layers=2,
    heads=2,
    hidden=128,
    batch=4,
    overhead_prompt=64,
    overhead_pairs=4,
    overhead_control=False,
    contexts=(256, 512),
    context_steps=8,
    pool_prompt=768,
    pool_output=32,
    crowd=8,
    crowd_output=64,
    compaction_prompt=256,
    compaction_output=160,
    policy_prompts=(256,),
    policy_budgets=(0.25,),
    policy_output=150,
    policy_repeats=1,
    gather_prompt=256,
    gather_every=(1, 4),
    gather_chunk=128,
    wide_hidden=512,
    wide_repeats=1,
    summary_prompts=(256,),
    summary_batches=(2,),
    summary_output=33,
    width=8,
    width_slack=32,
    width_block=4,
    width_pairs=3,
    budget=128,
)

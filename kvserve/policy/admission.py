"""Whether a request can ever be served by this server, decided before it waits for it."""

from kvserve.policy import Facts, Policy, Rotation, SidePass, SummaryTokens
from kvserve.policy.errors import PolicyError
from kvserve.policy.evidence import find


def refuse_prompt_logprobs(policy: Policy) -> None:
    """Who asks for them wants to know what compression does to them, and it would have done nothing yet."""
    acts = policy.at is not None or find(SummaryTokens, policy.evidence)  # while the prompt is read
    if policy.compresses and not acts:
        raise PolicyError(
            f"kv_policy {policy.name!r} cannot be combined with the log-probabilities of the prompt (prompt_logprobs, "
            "or echo with logprobs): a prompt is read before its cache is compressed, so they would be those of the "
            "uncompressed model; say with kv_policy.at after how many prompt tokens to compress, or use 'full'",
            reason="unsupported",
        )


def refuse_pictures(policy: Policy, facts: Facts) -> None:
    """Where a token of a picture has several positions, undoing the rotation by one of them would be wrong.

    Where its tokens attend to each other, the kernel is told between which positions they lie, and finds them by slot.
    """
    problem, instead = None, "choose another policy"
    if facts.picture_spans and policy.compresses:
        problem, instead = "moves tokens, and on this model those of a picture attend to each other", "use 'full'"
    elif facts.mrope and find(Rotation, policy.evidence):
        problem = (
            "undoes the rotation of queries or keys, and on this model a token of a picture or video is rotated by "
            "several positions (M-RoPE), not by one"
        )
    elif find(SidePass, policy.evidence):
        problem = "has the model repeat the prompt, which can be done with text only"
    if problem is not None:
        raise PolicyError(
            f"kv_policy {policy.name!r} {problem}; send text only, or {instead}",
            param="kv_policy.name",
            reason="unsupported",
        )


def refuse_unplaced(policy: Policy, text_only: bool) -> None:
    """What is shared must have an end, and be known by its tokens."""
    problem = None
    if policy.share and policy.at is None:
        problem = (
            "says to keep the prompt up to kv_policy.at for others, which is not given; give it, or leave share out"
        )
    elif policy.share and not text_only:
        problem = "finds prompts by their text, and this one has pictures or embeddings; leave it out"
    if problem is not None:
        raise PolicyError(f"kv_policy.share {problem}", param="kv_policy.share")


def room(facts: Facts, seen: int) -> int:
    """Tokens per compressible layer that one request can hold in an otherwise empty pool when it has seen `seen`.

    All groups of layers take their blocks from one pool, those too that are never compressed: a window of tokens, or
    a recurrent state. Where groups have blocks of different size this is a lower bound.
    """
    if not facts.block_sizes:
        return facts.pool_tokens
    others = sum(min(other.most_blocks, -(-seen // other.block_size) + 1) for other in facts.other_groups)
    return max(0, facts.pool_blocks - others) // len(facts.block_sizes) * min(facts.block_sizes)


def whole_prefill(policy: Policy, tokens: int, facts: Facts) -> bool:
    """Whether a prompt of `tokens` is compacted once at its end rather than between its chunks."""
    return policy.prefill == "whole" and tokens < room(facts, tokens)


def fitting(policy: Policy, prompt: int, generate: int | None, facts: Facts) -> int | None:
    """Tokens that may be generated before the request alone would overflow an empty pool.

    Equals `generate` where the pool is large enough for max_model_len, which vLLM's start-up check
    ensures unless --kv-resident-tokens lowered it. Raises PolicyError if not even one token fits, or if the prompt has
    no token at which the policy is to act.
    """
    if isinstance(policy.at, str):
        raise PolicyError(
            f"kv_policy.at is {policy.at!r}, which only a chat has that a chat template writes (/v1/chat/completions, "
            f"/batch too, /v1/responses, /v1/messages); allowed here: a token position, 1 to {prompt}",
            param="kv_policy.at",
        )
    if policy.at is not None and policy.at > prompt:
        raise PolicyError(
            f"kv_policy.at is {policy.at}, but the prompt has {prompt} tokens; allowed: 1 to {prompt}",
            param="kv_policy.at",
        )
    if generate is None or not facts.pool_tokens:
        return generate
    read = policy.prompt_of(prompt)
    whole = whole_prefill(policy, read, facts)

    def peak(tokens: int) -> int:
        return policy.peak(read, prompt - read + tokens, facts.chunk, whole)

    def fits(tokens: int) -> bool:
        return peak(tokens) <= room(facts, prompt + tokens)

    if fits(generate):
        return generate
    if not fits(1):
        raise PolicyError(
            f"the prompt has {prompt} tokens and needs room for {peak(1)} "
            f"with kv_policy {policy.name!r}, but the KV cache holds {room(facts, prompt + 1)} tokens in all; "
            "shorten the prompt or choose a policy with a smaller budget",
            reason="too_long",
        )
    low, high = 1, generate  # fits(low), not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low

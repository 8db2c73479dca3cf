"""How many requests a pool of blocks can hold at once."""

from typing import NamedTuple

from bench.sizes import BLOCK


class Held(NamedTuple):
    """Most tokens of one request in the pool."""

    prefill: int  # until its prompt is complete and compacted
    decode: int  # from then on


def blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def allowed(held: Held, pool: int) -> int:
    """Requests at once in `pool` blocks.

    vLLM prefills prompts one after the other as long as a chunk fills a step. So one request needs the
    blocks of its prefill and all before it those of decoding: 1 + (pool - prefill) // decode. That holds for
    prompts compacted as a whole and, with the smaller peak between chunks, for chunked ones. Uncompressed,
    both are the same, and it is pool // blocks of a request.
    """
    prefill, decode = blocks(held.prefill), blocks(held.decode)
    return 0 if prefill > pool else 1 + (pool - prefill) // decode

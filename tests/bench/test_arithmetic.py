"""What block arithmetic allows."""

from bench.arithmetic import Held, allowed, blocks


def test_blocks_round_up() -> None:
    assert [blocks(tokens) for tokens in (1, 32, 33)] == [1, 1, 2]


def test_uncompressed_requests_divide_the_pool() -> None:
    request = 4096 + 96
    held = Held(prefill=request, decode=request)
    assert allowed(held, 3 * blocks(request)) == 3
    assert allowed(held, 3 * blocks(request) - 1) == 2


def test_one_prompt_at_a_time_needs_all_of_its_blocks() -> None:
    assert allowed(Held(prefill=4096, decode=640), pool=128) == 1
    assert allowed(Held(prefill=4096, decode=640), pool=128 + 3 * 20) == 4


def test_a_prompt_larger_than_the_pool_never_runs() -> None:
    assert allowed(Held(prefill=4096, decode=640), pool=127) == 0

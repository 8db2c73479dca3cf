"""Pools and requests in blocks."""

from dataclasses import replace

import pytest

from loadtests.sizes import BLOCK, LONG, QUICK, SHORT, Load, LoadSizes


def test_a_request_takes_whole_blocks_prefix_included() -> None:
    assert Load(requests=1, clients=1, prompt=BLOCK, output=1).blocks == 2
    assert Load(requests=1, clients=1, prompt=BLOCK - 1, output=1).blocks == 1
    assert Load(requests=1, clients=1, prompt=1, output=1, prefixes=1, prefix=BLOCK).blocks == 2


def test_a_pool_is_a_share_of_what_all_clients_need() -> None:
    sizes = replace(SHORT, crossover=Load(requests=24, clients=12, prompt=2048, output=192))
    assert [sizes.pool(share) for share in (1.0, 0.5, 0.25)] == [216, 108, 54]


@pytest.mark.parametrize("sizes", [SHORT, LONG, QUICK])
def test_the_smallest_pool_holds_the_longest_request(sizes: LoadSizes) -> None:
    for load in (sizes.crossover, sizes.mixed, sizes.prefix, sizes.decode, sizes.churn, sizes.soak):
        assert load.blocks * BLOCK <= sizes.longest <= sizes.pool(min(sizes.shares)) * BLOCK


def test_random_prompts_may_grow_by_a_few_tokens_without_needing_another_block() -> None:
    for load in (SHORT.crossover, LONG.crossover):
        assert load.blocks == replace(load, prompt=load.prompt + 32).blocks


def test_a_pool_that_holds_no_request_is_refused() -> None:
    with pytest.raises(ValueError, match="a pool of 128 tokens cannot hold a request of 2304"):
        replace(SHORT, shares=(1.0, 0.005))


def test_shares_in_another_order_are_refused() -> None:
    with pytest.raises(ValueError, match="must begin with the largest"):
        replace(SHORT, shares=(0.25, 1.0))

"""What the API process believes of one engine's pool, from the sum that vLLM tells it."""

import pytest
from vllm.config import ParallelConfig

from kvserve.facts import _engines


@pytest.mark.parametrize(
    ("options", "engines"),
    [
        ({}, 1),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2}, 4),  # one server balances over both machines
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}, 2),
        ({"data_parallel_size": 4, "data_parallel_size_local": 1, "data_parallel_external_lb": True}, 1),
    ],
)
def test_engines_behind_an_api_process(options, engines):
    """As vLLM's own client counts them (v1/engine/core_client.py, engine_ranks_managed)."""
    assert _engines(ParallelConfig(**options)) == engines

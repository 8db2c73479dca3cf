"""Of several engines behind an API process any may be asked, so the one that holds least says what fits."""

from types import SimpleNamespace

import pytest

from kvserve.policy import Facts
from kvserve.startup.facts import facts_of, keep
from kvserve.startup.guard import UnsupportedError

FACTS = Facts(num_layers=4, groups=1, block_size=16, pool_tokens=1000, max_model_len=4096, chunk=512)


@pytest.mark.parametrize("order", [(1000, 600, 800), (600, 1000, 800), (800, 1000, 600)])
def test_the_smallest_pool_counts(order):
    config = SimpleNamespace()
    for tokens in order:
        keep(config, FACTS._replace(pool_tokens=tokens))
    assert facts_of(config).pool_tokens == 600


def test_an_engine_that_has_said_nothing():
    with pytest.raises(UnsupportedError, match="has not said"):
        facts_of(SimpleNamespace())

import pytest

from evals import items


@pytest.fixture(scope="session")
def world():
    return items.world()

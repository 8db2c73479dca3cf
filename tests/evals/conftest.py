import pytest

from evals import items
from evals.essays import Essays
from models.tasks import prose


@pytest.fixture(scope="session")
def world():
    return items.world()


@pytest.fixture(scope="session")
def texts():
    """Prose that is at hand, in place of the essays, which have to be fetched."""
    return Essays(prose.sentences(held_out=True))

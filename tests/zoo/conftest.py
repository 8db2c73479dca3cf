"""Each shape is started once, for all tests of a module."""

import pytest

from tests.engine import harness
from tests.zoo.served import Served
from tests.zoo.shapes import SHAPES


def named(*, refusing: bool) -> list:
    """Names of the shapes that refuse all policies, or of the others; those out of the sample are slow."""
    return [
        pytest.param(name, marks=() if shape.sample else pytest.mark.slow)
        for name, shape in SHAPES.items()
        if ("*" in shape.refused) == refusing
    ]


def pytest_generate_tests(metafunc):
    if "zoo" in metafunc.fixturenames:
        metafunc.parametrize("zoo", named(refusing=getattr(metafunc.module, "REFUSING", False)), indirect=True)


@pytest.fixture(scope="module")
def zoo(request, tmp_path_factory):
    served = Served.start(SHAPES[request.param], tmp_path_factory.mktemp("zoo") / request.param)
    yield served
    harness.stop(served.llm)

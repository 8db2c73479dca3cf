"""Shapes that cannot be compressed say so: at the start where the whole model cannot, else with a 400."""

import pytest
from vllm.exceptions import VLLMValidationError

from kvserve.startup.guard import UnsupportedError
from tests.engine import harness
from tests.zoo.making import write
from tests.zoo.served import SETTINGS
from tests.zoo.shapes import SHAPES

REFUSED = {name: shape.refused["*"] for name, shape in SHAPES.items() if "*" in shape.refused}
POLICIES = ["snapkv:0.25", "streaming:400", "expected-attention:0.5"]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    shape = SHAPES[name]
    settings = {**SETTINGS, "model": write(shape, tmp_path / name), **shape.engine}
    if "ALiBi" in REFUSED[name]:
        with pytest.raises(UnsupportedError, match=REFUSED[name]):
            harness.start(**settings)
        return
    llm = harness.start(**settings)
    for policy in POLICIES:
        with pytest.raises(VLLMValidationError, match=REFUSED[name]):
            harness.generate(llm, [harness.tokens(100)], [policy], 4)
    [output] = harness.generate(llm, [harness.tokens(100)], ["full"], 4)
    assert len(harness.said(output)[0]) == 4
    harness.stop(llm)

"""For authors of policies: a layer to look at without an engine, and the checks that every policy must pass.

    view = layer_view(keys, values, queries)          # tensors of your own
    view = random_layer().view(policy)                # random ones, and of the evidence only what the policy reads
    slots = policy.select(view, keep=100)

`kvserve check-policy NAME` runs the checks; `run` does the same in a test of your own.
"""

from kvserve.testing.checks import CHECKS, Result, run
from kvserve.testing.views import RandomLayer, layer_view, random_layer

__all__ = ["CHECKS", "RandomLayer", "Result", "layer_view", "random_layer", "run"]

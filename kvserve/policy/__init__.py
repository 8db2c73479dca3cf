"""The policy contract: the page to read first when writing a compression method.

A policy is a small frozen class whose fields are its request parameters. One declaration gives
validation, JSON schema, CLI help and docs:

    class Norm(ScoringPolicy):
        \"\"\"Keep the tokens with the smallest keys.\"\"\"
        name = "norm"
        reads = ("keys",)
        def scores(self, view):                      # (H, n), higher = keep
            return -view.keys.norm(dim=-1)

The scheduler asks *when* and *how many* (`due`, plain integers); every worker asks *which* (`select`,
tensors of its own KV heads). A policy never sees blocks, batches or other requests.
What all policies have is in `kvserve.policy.base`, the bases of most of them in `kvserve.policy.scoring`, and what
they see of a layer in `kvserve.policy.view`.
"""

from kvserve.policy.base import EVERYTHING, Policy
from kvserve.policy.errors import PolicyError
from kvserve.policy.rope import Rope
from kvserve.policy.scoring import GathersMass, ScoringPolicy, UnevenLayers, top_slots
from kvserve.policy.softmax import Softmax
from kvserve.policy.types import Facts, Merged, Moment, Summaries
from kvserve.policy.view import LayerView, Moments, unseen_slots

__all__ = [
    "EVERYTHING",
    "Facts",
    "GathersMass",
    "LayerView",
    "Merged",
    "Moment",
    "Moments",
    "Policy",
    "PolicyError",
    "Rope",
    "ScoringPolicy",
    "Softmax",
    "Summaries",
    "UnevenLayers",
    "top_slots",
    "unseen_slots",
]

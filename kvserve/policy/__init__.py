"""The policy contract: the page to read first when writing a compression method.

A policy is a small frozen class whose fields are its request parameters. One declaration gives
validation, JSON schema, CLI help and docs:

    class Norm(ScoringPolicy):
        \"\"\"Keep the tokens with the smallest keys.\"\"\"
        name = "norm"
        reads = (Keys(),)
        def scores(self, view):                      # (H, n), higher = keep
            return -view.keys.norm(dim=-1)

The scheduler asks *when* and *how many* (`due`, plain integers: `kvserve.policy.budgeted`); every worker asks
*which* (`select`, tensors of its own KV heads: `kvserve.policy.choosing`). A policy never sees blocks, batches or
other requests. What can be read is in `kvserve.policy.evidence`, and what one sees of a layer in `kvserve.policy.view`.
The bases of most policies are in `kvserve.policy.scoring`, of those around another one in `kvserve.policy.wrapping`.
"""

from kvserve.policy.base import Policy
from kvserve.policy.budgeted import EVERYTHING, NEVER
from kvserve.policy.errors import PolicyError
from kvserve.policy.evidence import (
    Calibrated,
    Evidence,
    Keys,
    Mass,
    Moments,
    OutputWeight,
    Queries,
    Rotation,
    SidePass,
    SummaryTokens,
    Values,
)
from kvserve.policy.mixins import GathersMass, UnevenLayers
from kvserve.policy.rope import Rope
from kvserve.policy.scoring import RankingPolicy, ScoringPolicy, top_slots
from kvserve.policy.softmax import Softmax
from kvserve.policy.types import Facts, Merged, Moment, Summaries
from kvserve.policy.view import LayerView, QuerySums, unseen_slots
from kvserve.policy.wrapping import WrappingPolicy

__all__ = [
    "EVERYTHING",
    "NEVER",
    "Calibrated",
    "Evidence",
    "Facts",
    "GathersMass",
    "Keys",
    "LayerView",
    "Mass",
    "Merged",
    "Moment",
    "Moments",
    "OutputWeight",
    "Policy",
    "PolicyError",
    "Queries",
    "QuerySums",
    "RankingPolicy",
    "Rope",
    "Rotation",
    "ScoringPolicy",
    "SidePass",
    "Softmax",
    "Summaries",
    "SummaryTokens",
    "UnevenLayers",
    "Values",
    "WrappingPolicy",
    "top_slots",
    "unseen_slots",
]

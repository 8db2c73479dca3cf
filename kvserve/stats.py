"""Running totals of one engine: counted by the scheduler, shown by the API process.

A snapshot is cumulative, so a lost one loses nothing. It crosses to the API process as JSON inside
vLLM's scheduler statistics (see `kvserve.channels`).
"""

import json
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Edges of `compaction_seconds`: a plan on a small model takes about 1 ms, on a 7B model on CPU 0.1 s."""

SHARES = tuple(i / 20 for i in range(1, 21))
"""Edges of `kept_fraction`: steps of 5 %, as budgets are written."""

SHOWN = 64
"""How many running requests of an engine a snapshot lists."""


@dataclass
class Histogram:
    """Counts per bucket (not cumulative over buckets; the last one is +Inf) and the sum."""

    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, edges: tuple[float, ...]) -> "Histogram":
        return cls([0] * (len(edges) + 1))

    def add(self, edges: tuple[float, ...], value: float) -> None:
        self.counts[bisect_left(edges, value)] += 1
        self.total += value


@dataclass
class PolicyTotals:
    """What one policy did since start-up."""

    requests: int = 0
    prompt_tokens: int = 0  # with those found in the prefix cache
    generated_tokens: int = 0
    compactions: int = 0
    evicted: float = 0.0  # tokens per layer, mean over layers
    merged: float = 0.0
    blocks_freed: int = 0
    pressure_compactions: int = 0
    errors: int = 0
    prefix_hits: int = 0  # requests that started from a shared compressed prefix
    prefix_tokens: int = 0  # logical tokens that they did not have to read
    seconds: Histogram = field(default_factory=lambda: Histogram.over(SECONDS))
    kept: Histogram = field(default_factory=lambda: Histogram.over(SHARES))


class Running(TypedDict):
    """One running request, as it is now. Tokens are per layer (mean)."""

    id: str  # the last characters of vLLM's id, with the number of the sequence in front if n > 1
    policy: str
    budget: int | float | None
    stage: str  # prefill | decode
    logical_tokens: int
    kept_tokens: float
    resident_bytes: int
    full_bytes: int


class SharedPrefix(TypedDict):
    """One compressed prefix that later requests can start from. Tokens are per layer (mean)."""

    id: str
    policy: str
    budget: int | float | None
    logical_tokens: int
    kept_tokens: float
    bytes: int
    hits: int
    age_seconds: float
    idle_seconds: float  # since it was made, or last taken


@dataclass
class EngineTotals:
    """All that one engine reports."""

    policies: dict[str, PolicyTotals] = field(default_factory=dict)
    resident_bytes: int = 0  # held now by running requests
    full_bytes: int = 0  # what the same requests would hold uncompressed
    pool_bytes: int = 0
    preemptions_avoided: int = 0
    running: list[Running] = field(default_factory=list)  # the first SHOWN of them
    requests_running: int = 0
    requests_waiting: int = 0
    prefix_bytes: int = 0  # of shared compressed prefixes, with the blocks that running requests use too
    prefixes: list[SharedPrefix] = field(default_factory=list)  # the first SHOWN, last used first

    def of(self, policy: str) -> PolicyTotals:
        return self.policies.setdefault(policy, PolicyTotals())

    def dump(self) -> str:
        """A snapshot. `at`, seconds on the machine's clock, tells a newer one of an engine from an older one."""
        return json.dumps({"at": time.monotonic(), **vars(self)}, default=vars)


def short_id(req_id: str) -> str:
    """`2_chatcmpl-4f0c-1a2b3c4d` -> `2_1a2b3c4d`: vLLM ends its ids with eight random characters."""
    sequence, underscore, _ = req_id.partition("_")
    return (sequence + underscore if underscore and sequence.isdigit() else "") + req_id[-8:]


@dataclass(frozen=True)
class Outcome:
    """What became of one request; `usage.kv_cache` of the response. Tokens are per layer (mean)."""

    policy: str
    budget: int | float | None
    logical_tokens: int
    kept_tokens: float
    evicted_tokens: float
    merged_tokens: float
    compactions: int
    resident_bytes: int
    full_bytes: int
    draft_tokens: int | None = None  # of speculative decoding; None: the server does without
    accepted_tokens: int | None = None  # of those
    shared_tokens: int | None = None  # taken from a shared compressed prefix, logical; None: it did not ask to share
    granularity: Literal["group"] | None = None  # "group": layers that share block tables got the mean of their budgets

    def record(self) -> dict[str, Any]:
        """What a client reads; what is None is left out, but for the budget."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "budget"}

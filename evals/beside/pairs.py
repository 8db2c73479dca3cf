"""Which press of kvpress is which policy of kvserve, and with which settings they should choose the same tokens."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SAME, NEAR, SHIPPED = "same", "near", "shipped"
KINDS = {
    SAME: "settings with which both should keep the same tokens",
    NEAR: "the press as it is, and the policy as near to it as its parameters go",
    SHIPPED: "each with its own defaults, where these differ",
}
WINDOW, BETA = 32, 20


@dataclass(frozen=True)
class Pair:
    """One policy of both sides.

    ours: the fields of `kv_policy`, but for budget and moment. theirs: `press` names a class of kvpress, or of
    `evals.beside.presses`, the rest are its fields; `sinks` and `recent` protect tokens that the press itself does not.
    why: what differs, if something does.
    """

    kind: str
    ours: dict[str, Any] = field(hash=False)
    theirs: dict[str, Any] = field(hash=False)
    why: str = ""
    once: bool = False  # asked with the first task and the middle budget only
    draws: bool = False  # whether each side draws lots of its own

    @property
    def policy(self) -> str:
        return str(self.ours["name"])

    @property
    def label(self) -> str:
        """As a row of the table: what is not a default."""
        ours = ", ".join(f"{name} {value}" for name, value in self.ours.items() if name != "name")
        theirs = ", ".join(f"{name} {value}" for name, value in self.theirs.items() if name != "press")
        return f"{self.policy} ({ours or 'defaults'}) | {self.theirs['press']} ({theirs or 'defaults'})"


def _unguarded(name: str, press: str, why: str, same: str = "", **bare: Any) -> list[Pair]:
    """A policy that protects sinks and recent tokens where its press protects none."""
    ours, near = {"name": name, **bare, "recent": 1}, {"press": press}
    return [
        Pair(SAME, ours, {"press": press, "recent": 1}, same),
        Pair(NEAR, ours, near, "kvserve always keeps the newest token, kvpress by its score only", once=True),
        Pair(SHIPPED, {"name": name}, near, why, once=True),
    ]


GUARD = {"sinks": 4, "recent": 32}  # what kvserve's scoring policies protect unless told otherwise
DRAWS = "each draws lots of its own, so only the shares of right answers can agree"
TIES = (
    "in the first layer a word has the same key norm wherever it stands, so many tokens tie: kvserve keeps the newer "
    "one, kvpress any"
)
UNGUARDED = "kvserve keeps the first 4 and the newest 32 tokens whatever their scores, kvpress protects none"
ROUNDED = "each side rounds the layers' shares its own way, so one may keep a token more in a layer"
SNAPKV = {"window": WINDOW, "kernel": 5, "pooling": "avg"}
PAIRS: Sequence[Pair] = (
    Pair(SAME, {"name": "streaming"}, {"press": "StreamingLLMPress"}),
    Pair(SAME, {"name": "random"}, {"press": "RandomPress", **GUARD}, DRAWS, draws=True),
    Pair(SHIPPED, {"name": "random"}, {"press": "RandomPress"}, UNGUARDED, once=True, draws=True),
    *_unguarded("knorm", "KnormPress", UNGUARDED, TIES, sinks=0),
    Pair(SAME, {"name": "knorm"}, {"press": "KnormPress", **GUARD}, TIES, once=True),
    *_unguarded("keydiff", "KeyDiffPress", UNGUARDED, sinks=0),
    Pair(SAME, {"name": "tova"}, {"press": "TOVAPress"}),
    Pair(SAME, {"name": "snapkv", **SNAPKV}, {"press": "SnapKVPress", "window_size": WINDOW}),
    Pair(
        SHIPPED,
        {"name": "snapkv"},
        {"press": "SnapKVPress"},
        "kvserve: the last 32 queries, their attention max-pooled over 7 tokens (the paper's code); kvpress: the last "
        "64, averaged over 5. The row with a window of 32 and averages over 5 tells the two apart: where kvserve is "
        "ahead (`inside`), it is the pooling",
        once=True,
    ),
    Pair(
        SAME,
        {"name": "pyramidkv", **SNAPKV},
        {"press": "PyramidKVPress", "window_size": WINDOW, "beta": "matched"},
        ROUNDED,
    ),
    Pair(
        SHIPPED,
        {"name": "pyramidkv"},
        {"press": "PyramidKVPress"},
        "as snapkv; and kvpress shapes the window's share of the budget too, and gives all layers the same where the "
        "last one would get less than a window. Here that is so at 25 % and below, where it is SnapKV",
        once=True,
    ),
    *_unguarded(
        "expected-attention",
        "ExpectedAttentionPress",
        "kvserve keeps the newest 32 tokens whatever their scores, kvpress only 4 sinks",
    ),
    Pair(
        NEAR,
        {"name": "lagkv", "sinks": 4},
        {"press": "LagKVPress"},
        "tokens of like rank in their partitions tie: kvserve keeps the newer one, kvpress any; kvserve also keeps the "
        "newest 32",
    ),
    Pair(
        NEAR,
        {"name": "chunkkv", "of": {"name": "snapkv", **SNAPKV}, "chunk": 20, "heads": False},
        {"press": "ChunkKVPress", "of": {"press": "SnapKVPress", "window_size": WINDOW}, "chunk_length": 20},
        "kvpress keeps whole chunks only, at most as many tokens as the budget has; kvserve fills it up, and keeps the "
        "window whatever its chunks' ranks",
    ),
    Pair(
        NEAR,
        {"name": "criticalkv", "of": {"name": "snapkv", **SNAPKV}},
        {"press": "CriticalKVPress", "of": {"press": "SnapKVPress", "window_size": WINDOW}},
        "in kvpress the window counts for the half that goes by attention alone, in kvserve it is beside both halves",
    ),
    Pair(SAME, {"name": "h2o", "recent_share": 0.0}, {"press": "Summed", "recent": 1}),
    Pair(
        NEAR,
        {"name": "h2o", "recent_share": 0.0},
        {"press": "ObservedAttentionPress"},
        "kvserve sums attention up; kvpress divides the sum by the number of queries that could see a token, which "
        "favours the newest. Undoing that division is all that `Summed` does",
        once=True,
    ),
    Pair(
        SHIPPED,
        {"name": "h2o"},
        {"press": "ObservedAttentionPress"},
        "kvserve: half of the budget for the newest tokens, attention summed up (the paper); kvpress: no recent "
        "window, and the mean over the queries that could see a token instead of the sum",
        once=True,
    ),
)


def cells(first: bool, budgets: Sequence[float]) -> list[tuple[Pair, float]]:
    """Pairs and the budgets that they are asked at; first: whether the task is the first one."""
    middle = sorted(budgets)[len(budgets) // 2]
    return [(pair, at) for pair in PAIRS for at in budgets if not pair.once or (first and at == middle)]


def key(settings: dict[str, Any]) -> str:
    """Settings as the name of a run: pairs that share one share its answers."""
    return json.dumps(settings, sort_keys=True)


def kept(budget: float, held: int) -> int:
    """Tokens that stay of those held, as kvserve rounds: up."""
    return math.ceil(round(budget * held, 6))


def ratio(keep: int, held: int) -> float:
    """The compression ratio at which kvpress, which rounds down, keeps as many."""
    return 0.0 if keep >= held else 1 - (keep + 0.5) / held


def matched_beta(keep: int, window: int = WINDOW, beta: float = BETA) -> float:
    """kvpress' beta at which its last layer gets what kvserve's gets.

    kvserve shapes what is beyond the window, from window + 2M - M/beta down to window + M/beta, M = keep - window;
    kvpress shapes all of it, from 2 * keep - keep/beta' down to keep/beta'. Equal last layers have equal first ones.
    """
    return keep / (window + (keep - window) / beta)

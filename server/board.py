"""What the API process knows of its engines: their latest totals, and the requests refused here."""

from collections import Counter
from contextvars import ContextVar
from typing import Any

from kvserve.errors import PolicyError
from kvserve.stats import EngineTotals, Histogram, PolicyTotals

REASONS = ("unknown_policy", "bad_parameter", "unsupported", "too_long")

_refused: ContextVar[list[PolicyError] | None] = ContextVar("kvserve_refused", default=None)
"""Refusals of the HTTP request being served. A list, so that the tasks that vLLM starts share it."""


def _histogram(value: dict[str, Any]) -> Histogram:
    return Histogram(list(value["counts"]), value["total"])


def totals_of(snapshot: dict[str, Any]) -> EngineTotals:
    """The dataclasses that `EngineTotals.dump` wrote."""
    policies = {
        name: PolicyTotals(**{**p, "seconds": _histogram(p["seconds"]), "kept": _histogram(p["kept"])})
        for name, p in snapshot["policies"].items()
    }
    return EngineTotals(**{**snapshot, "policies": policies})


def _sum(a: Any, b: Any) -> Any:
    if isinstance(a, Histogram):
        return Histogram([x + y for x, y in zip(a.counts, b.counts, strict=True)], a.total + b.total)
    if isinstance(a, dict):
        return {k: _sum(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}
    if isinstance(a, PolicyTotals | EngineTotals):
        return type(a)(**{k: _sum(v, vars(b)[k]) for k, v in vars(a).items()})
    return a + b


class Board:
    """One per process; filled by the stat logger and by the routes, read by metrics and endpoints."""

    def __init__(self) -> None:
        self.model_name = ""
        self.switched_on = False
        self._engines: dict[int, EngineTotals] = {}
        self._rejections: Counter[str] = Counter(dict.fromkeys(REASONS, 0))

    def serves(self, vllm_config: Any, switched_on: bool) -> None:
        """Which model the numbers are of, and whether it is one that can have any."""
        self.model_name = vllm_config.model_config.served_model_name
        self.switched_on = switched_on

    # -- engines --------------------------------------------------------------------------------------

    def post(self, engine: int, snapshot: dict[str, Any]) -> None:
        """Replace an engine's totals: snapshots are cumulative."""
        self._engines[engine] = totals_of(snapshot)

    @property
    def reported(self) -> bool:
        return bool(self._engines)

    def totals(self) -> EngineTotals:
        """The sum over the engines."""
        result = EngineTotals()
        for totals in self._engines.values():
            result = _sum(result, totals)
        return result

    # -- refusals -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new HTTP request: its refusals count once, however many sequences it has."""
        _refused.set([])

    def reject(self, error: PolicyError) -> None:
        """Count a refusal; also the observer that the engine's front end calls."""
        seen = _refused.get()
        if seen:
            return
        if seen is not None:
            seen.append(error)
        self._rejections[error.reason] += 1

    @property
    def rejections(self) -> dict[str, int]:
        return dict(self._rejections)


board = Board()
"""The process's own: vLLM makes the stat loggers and the endpoint plugin apart from each other."""

"""What the API processes know of their engines: the latest totals, and the requests refused."""

import time
from collections import Counter
from contextvars import ContextVar
from typing import Any, NamedTuple

from kvserve.policy.errors import PolicyError, PolicyFault
from kvserve.stats import EngineTotals, Histogram, PolicyTotals
from server.canary.canary import CanaryFindings
from server.metrics.prefixes import aged, without
from server.metrics.shared import Shared

REASONS = ("unknown_policy", "bad_parameter", "unsupported", "too_long")

POSTED = "posted"
"""In a snapshot: when it came, on the clock of the API processes, which need not be that of the engine (`at`)."""

_refused: ContextVar[list[PolicyError | PolicyFault] | None] = ContextVar("kvserve_refused", default=None)
"""Refusals of the HTTP request being served. A list, so that the tasks that vLLM starts share it."""


def _histogram(value: dict[str, Any]) -> Histogram:
    return Histogram(list(value["counts"]), value["total"])


def totals_of(snapshot: dict[str, Any]) -> EngineTotals:
    """The dataclasses that `EngineTotals.dump` wrote, of a snapshot that was posted; prefixes have aged since."""
    policies = {
        name: PolicyTotals(**{**p, "seconds": _histogram(p["seconds"]), "kept": _histogram(p["kept"])})
        for name, p in snapshot["policies"].items()
    }
    since = time.monotonic() - snapshot[POSTED]
    prefixes = [aged(prefix, since) for prefix in snapshot["prefixes"]]
    fields = {name: value for name, value in snapshot.items() if name not in ("at", POSTED)}
    return EngineTotals(**{**fields, "policies": policies, "prefixes": prefixes})


def _sum(a: Any, b: Any) -> Any:
    if isinstance(a, Histogram):
        return Histogram([x + y for x, y in zip(a.counts, b.counts, strict=True)], a.total + b.total)
    if isinstance(a, dict):
        return {k: _sum(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}
    if isinstance(a, PolicyTotals | EngineTotals):
        return type(a)(**{k: _sum(v, vars(b)[k]) for k, v in vars(a).items()})
    return a + b


class View(NamedTuple):
    """What is known at one moment, by all API processes together."""

    totals: EngineTotals  # the sum over the engines
    reported: bool  # whether any engine has said anything yet
    rejections: dict[str, int]  # by reason


class Board:
    """One per process; filled by the stat logger and by the routes, read by metrics and endpoints.

    Reading may happen in another thread than filling.
    """

    def __init__(self) -> None:
        self.model_name = ""
        self.switched_on = False
        self.findings: CanaryFindings | None = None  # of the canary, if this server has one
        self._shared: Shared | None = None
        self._engines: dict[int, dict[str, Any]] = {}  # the newest snapshot that this process was sent
        self._rejections: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._faults: Counter[str] = Counter()  # by policy: found in this process, before the engine was asked

    def serves(self, vllm_config: Any, switched_on: bool) -> None:
        """Which model the numbers are of, whether it is one that can have any, and who else counts."""
        self.model_name = vllm_config.model_config.served_model_name
        self.switched_on = switched_on
        if switched_on and self._shared is None:
            self._shared = Shared.of(vllm_config)

    # -- engines --------------------------------------------------------------------------------------

    def post(self, engine: int, snapshot: dict[str, Any]) -> None:
        """Replace an engine's totals: snapshots are cumulative."""
        self._engines[engine] = {**snapshot, POSTED: time.monotonic()}
        self._publish()

    def forget(self, prefix_id: str) -> None:
        """The engines have dropped a shared prefix. An idle one does not say so before its next request."""
        for engine, snapshot in self._newest(self._others()).items():
            self._engines[engine] = without(snapshot, prefix_id)
        self._publish()

    # -- refusals -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new HTTP request: its refusals count once, however many sequences it has."""
        _refused.set([])

    def reject(self, error: PolicyError | PolicyFault) -> None:
        """Count a refusal, or a fault of a policy; also the observer that the engine's front end calls."""
        seen = _refused.get()
        if seen:
            return
        if seen is not None:
            seen.append(error)
        if isinstance(error, PolicyFault):
            self._faults[error.policy] += 1
        else:
            self._rejections[error.reason] += 1
        self._publish()

    def refusal(self) -> PolicyError | PolicyFault | None:
        """Why the HTTP request that is being served was refused, or what its policy did wrong; None if neither."""
        seen = _refused.get()
        return seen[0] if seen else None

    # -- all processes together -----------------------------------------------------------------------

    def _publish(self) -> None:
        if self._shared is not None:
            self._shared.publish({"engines": self._engines, "rejections": self._rejections, "faults": self._faults})

    def _others(self) -> list[dict[str, Any]]:
        return self._shared.others() if self._shared is not None else []

    def _newest(self, others: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """By engine."""
        engines = self._engines.copy()
        for other in others:
            for index, snapshot in other["engines"].items():
                if int(index) not in engines or snapshot["at"] > engines[int(index)]["at"]:
                    engines[int(index)] = snapshot
        return engines

    def view(self) -> View:
        """Of each engine the newest snapshot that any process was sent; of each process its own refusals."""
        others, rejections, faults = self._others(), self._rejections.copy(), self._faults.copy()
        for other in others:
            rejections.update(other["rejections"])
            faults.update(other["faults"])
        engines = self._newest(others)
        totals = EngineTotals()
        for index in sorted(engines):
            totals = _sum(totals, totals_of(engines[index]))
        for policy, count in faults.items():
            totals.of(policy).errors += count
        return View(totals, bool(engines), dict(rejections))


board = Board()
"""The process's own: vLLM makes the stat loggers and the endpoint plugin apart from each other."""

"""A plug-in that goes wrong: in the method, and at the call, that a request names."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from kvserve.policy import (
    Evidence,
    Facts,
    GathersMass,
    Keys,
    LayerView,
    Mass,
    Merged,
    Moment,
    ScoringPolicy,
    registry,
    request,
)
from policies.ksa import KSA

CALLS: Counter[tuple[str, str]] = Counter()
"""Calls in this process, by the request's `key` and method."""

WHERE = (
    *("validator", "check", "settled", "salt", "prompt_of", "peak", "chunked_peak", "target", "due", "due_text"),
    *("shares", "shares_few", "evidence", "own_shares"),  # asked by the scheduler too
    *("own_shares_of", "shares_length", "shares_nan", "scores", "scores_shape", "scores_nan"),
    *("select", "choose", "consumed", "shape", "range", "repeated", "order", "dtype", "list", "missing"),
    *("merged", "merged_shape", "merged_nan"),
)
"""All that can go wrong on one worker."""


class Raising(GathersMass, ScoringPolicy):
    """Keeps the tokens with the largest attention mass, until it fails."""

    name: ClassVar[str] = "raising"
    reads: ClassVar[tuple[Evidence, ...]] = (Mass(), Keys())

    where: str = Field("", description="The method that raises, or what is wrong with what it returns")
    after: int = Field(0, ge=0, description="Calls of it in a process that go well")
    times: int = Field(10**9, ge=0, description="Calls after these that do not")
    rank: int = Field(-1, description="The only tensor-parallel worker on which it fails; -1: all")
    stage: int = Field(-1, description="The only pipeline stage on which it fails; -1: all")
    key: str = Field("", description="Requests with the same one count their calls together")

    def _fails(self, where: str) -> bool:
        if self.where != where or not self._here():
            return False
        CALLS[self.key, where] += 1
        return self.after < CALLS[self.key, where] <= self.after + self.times

    def _here(self) -> bool:
        if self.rank < 0 and self.stage < 0:
            return True
        from vllm.distributed import get_pp_group, get_tp_group, model_parallel_is_initialized

        if not model_parallel_is_initialized():
            return False
        return self.rank in (-1, get_tp_group().rank_in_group) and self.stage in (-1, get_pp_group().rank_in_group)

    def _maybe(self, where: str) -> None:
        if self._fails(where):
            raise RuntimeError(f"{where} is broken")

    # -- API process, scheduler and workers -----------------------------------------------------------

    @model_validator(mode="after")
    def _made(self) -> "Raising":
        self._maybe("validator")
        return self

    def check(self, facts: Facts) -> None:
        self._maybe("check")

    def settled(self, facts: Facts) -> "Raising":
        self._maybe("settled")
        return self

    @property
    def salt(self) -> str | None:
        self._maybe("salt")
        return None

    def prompt_of(self, tokens: int) -> int:
        self._maybe("prompt_of")
        return super().prompt_of(tokens)

    def peak(self, prompt: int, generate: int, chunk: int, whole: bool) -> int:
        self._maybe("peak")
        return super().peak(prompt, generate, chunk, whole)

    def chunked_peak(self, prompt: int, chunk: int) -> int:
        self._maybe("chunked_peak")
        return super().chunked_peak(prompt, chunk)

    def target(self, logical: int, prompt: int = 0) -> int:
        self._maybe("target")
        return super().target(logical, prompt)

    def due(self, at: Moment) -> int | None:
        self._maybe("due")
        return "many" if self._fails("due_text") else super().due(at)  # type: ignore[return-value]

    def shares(self, keep: int, num_layers: int, held: int) -> list[int] | None:
        self._maybe("shares")
        return [keep] if self._fails("shares_few") else None

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        self._maybe("evidence")
        return super().evidence

    @property
    def own_shares(self) -> bool:
        self._maybe("own_shares")
        return self.where in ("own_shares_of", "shares_length", "shares_nan")

    # -- workers --------------------------------------------------------------------------------------

    def own_shares_of(self, views: Any, keep: int) -> list[float]:
        self._maybe("own_shares_of")
        return (
            [keep]
            if self._fails("shares_length")
            else [float("nan" if self._fails("shares_nan") else keep)] * len(views)
        )

    def scores(self, view: LayerView) -> torch.Tensor:
        self._maybe("scores")
        self._maybe("swallow")
        mass = view.mass.sum(-1)
        try:
            scores = view.over_heads(mass).expand(view.num_heads, -1)
        except Exception:
            if self.where != "swallow":
                raise
            scores = mass
        if self._fails("more_means"):
            view.over_heads(mass)
        if self._fails("scores_shape"):
            return scores[:, 1:]
        return scores * torch.nan if self._fails("scores_nan") else scores

    def select(self, view: LayerView, keep: int) -> Any:
        self._maybe("select")
        chosen = super().select(view, keep)
        assert isinstance(chosen, torch.Tensor)
        wrong: dict[str, Callable[[], Any]] = {
            "shape": lambda: chosen[:, 1:],
            "range": lambda: chosen + view.num_slots,
            "repeated": lambda: chosen.clone().fill_(3),
            "order": lambda: chosen.flip(1),
            "dtype": lambda: chosen.int(),
            "list": lambda: chosen.tolist(),
            "missing": lambda: None,
            "merged": lambda: Merged(chosen, view.keys, None, 1),
            "merged_shape": lambda: Merged(chosen, view.keys[:, :2], None, 1),
            "merged_nan": lambda: Merged(chosen, view.keys[:, :keep] * torch.nan, None, 1),
        }
        return wrong[self.where]() if self.where in wrong and self._fails(self.where) else chosen

    def choose(self, views: Any, keeps: Any) -> Iterator[Any]:
        self._maybe("choose")
        return self._one_by_one(views, keeps)

    def _one_by_one(self, views: Any, keeps: Any) -> Iterator[Any]:
        for view, keep in zip(views, keeps, strict=True):
            self._maybe("consumed")
            yield self.select(view, keep)


class Uneven(KSA):
    """Lets parts of chunks go, which have no summary."""

    name: ClassVar[str] = "uneven"

    def due(self, at: Moment) -> int | None:
        keep = super().due(at)
        return None if keep is None else keep - 1


def plugin(folder: Path) -> str:
    """Install it for new processes, as any plug-in is, by an entry point in this folder; their PYTHONPATH."""
    about = folder / "raising-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: raising\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{registry.GROUP}]\nraising = {__name__}:Raising\n")
    return os.pathsep.join([str(folder), str(Path(__file__).parents[2])])


@contextmanager
def installed() -> Iterator[None]:
    """The plug-in can be asked for in this process."""
    found = registry.installed()
    found.update({Raising.name: Raising, Uneven.name: Uneven})
    CALLS.clear()
    request.forget()
    try:
        yield
    finally:
        for policy in (Raising, Uneven):
            found.pop(policy.name, None)

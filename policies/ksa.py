"""Kwai summary tokens: far text is read through one trained token for each chunk of it."""

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from kvserve.policy import (
    EVERYTHING,
    Evidence,
    Facts,
    LayerView,
    Merged,
    Moment,
    Policy,
    PolicyError,
    Summaries,
    SummaryTokens,
)


class KSA(Policy):
    """Replace each chunk of C text tokens that leaves the window of `window` chunks by the summary token that the model
    makes of it, in the layers that were trained for it; "full" layers keep all text.

    The paper's visibility exactly: a text token sees the text of its own chunk and of the `window` chunks before, and
    the summaries of all chunks before those. It needs a model with summary parameters (`kvserve train-summary`, or a
    converted published checkpoint). How much is kept follows from the window: of n tokens,
    n - (C - 1) * max(0, n // C - window) entries in a summary layer. A `budget` chooses the window with which the
    prompt comes nearest to it (mean over all layers); no window keeps less than one summary for each chunk before it.

    The released code computes summaries as rows of the running sequence; here they are computed from the cached text of
    their chunk when it leaves the window, which is the same, since they see nothing else.
    """

    name: ClassVar[str] = "ksa"
    paper: ClassVar[str] = "arXiv:2604.24432"
    budgeted: ClassVar[bool] = False
    per_head: ClassVar[bool] = False

    window: int | None = Field(
        None, ge=1, le=65536, description="Chunks before a token's own that it sees as text; null: as trained"
    )
    summaries: bool = Field(
        True, description="False: text that leaves the window is dropped (the paper's baseline without summaries)"
    )
    budget: int | float | None = Field(  # type: ignore[assignment]
        None,
        description="In the place of `window`: the one with which the prompt comes nearest to this many tokens kept "
        "per layer (mean), or to this share of it in (0, 1]; while text is generated the window stays",
    )
    at: None = Field(None, description="Not a choice: a chunk is replaced when it leaves the window")
    prefill: Literal["whole", "chunks"] = Field(
        "whole",
        description="Replace text when the prompt is complete, or between its chunks already, which needs less memory; "
        "what is computed is the same",
    )
    when: Literal["always"] = Field("always", description="Always: what a token sees must not depend on load")
    decode: Literal[True] = Field(True, description="Always: generated text is summarised like any other")
    share: Literal[False] = Field(False, description="Never: summaries that are not in the cache yet are not kept")  # type: ignore[assignment]
    slack: None = Field(None, description="Not a choice: a chunk is replaced when it leaves the window")  # type: ignore[assignment]

    _summaries: Summaries | None = PrivateAttr(None)
    _block_size: int = PrivateAttr(1)
    _chosen: int | None = PrivateAttr(None)  # the window that the budget asks for

    @model_validator(mode="after")
    def _one_of_two(self) -> "KSA":
        if self.window is not None and self.budget is not None:
            raise PolicyError(
                f"kv_policy.budget is {self.budget} and kv_policy.window is {self.window}; allowed: one of them, "
                "since a budget chooses the window",
                param="kv_policy.budget",
            )
        return self

    # -- what it is --------------------------------------------------------------------------------

    @property
    def salt(self) -> str:
        """Text behind the window has other keys than under full attention."""
        return f"ksa {self.window or self._chosen or 'as trained'} {self.summaries}"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        trained = self._summaries.window if self._summaries else None
        return (SummaryTokens(self.window or self._chosen or trained, self.summaries),)

    def check(self, facts: Facts) -> None:
        super().check(facts)
        about = facts.summaries
        if about is None:
            raise PolicyError(
                "kv_policy 'ksa' needs a model with summary parameters, and this one has none (no "
                "kvserve/summary.safetensors in its folder); make them with `kvserve train-summary`",
                reason="unsupported",
            )
        if facts.pipeline_parallel > 1:
            raise PolicyError(
                "kv_policy 'ksa' computes summary tokens through all layers while a step runs, and this server has "
                f"them on {facts.pipeline_parallel} pipeline stages; start it with pipeline parallelism 1, or choose "
                "another policy",
                reason="unsupported",
            )
        if facts.drafts:
            raise PolicyError(
                "kv_policy 'ksa' summarises a token once it is computed, and this server's speculative decoding may "
                "take tokens back; start it without, or choose another policy",
                reason="unsupported",
            )
        size = facts.num_layers // facts.groups
        summarised = about.layers.count("summary")
        if summarised % size:
            divisors = [n for n in range(1, facts.num_layers + 1) if not facts.num_layers % n]
            fitting = [str(n) for n in divisors if not summarised % (facts.num_layers // n)]
            raise PolicyError(
                f"kv_policy 'ksa' shortens {summarised} of this model's {facts.num_layers} layers, but its server has "
                f"them in {facts.groups} group(s), which mixes them with the others; start it with --kv-groups "
                f"{' or '.join(fitting)}",
                reason="unsupported",
            )

    def settled(self, facts: Facts) -> Self:
        own = self.model_copy()
        own._summaries, own._block_size = facts.summaries, facts.block_size
        return own

    def for_prompt(self, tokens: int) -> Self:
        if self.budget is None:
            return self
        own = self.model_copy()
        own._chosen = self._nearest(tokens)
        return own

    def _nearest(self, prompt: int) -> int:
        """The window with which the entries of a prompt come nearest to the budget."""
        about, text = self._about, prompt if isinstance(self.budget, float) else max(prompt, self.budget or 0)
        lost = (about.chunk - self.summaries) * about.layers.count("summary") / len(about.layers)  # by a chunk, mean
        gone = (text - super().target(text)) / lost if lost else 0  # chunks that must be summaries
        return max(1, text // about.chunk - round(gone))

    @property
    def _about(self) -> Summaries:
        if self._summaries is None:
            raise RuntimeError("this policy has not been told about its server")
        return self._summaries

    @property
    def text_window(self) -> int:
        return self.window or self._chosen or self._about.window

    # -- when, and how many ------------------------------------------------------------------------

    def entries(self, logical: int) -> int:
        """Entries that a summary layer needs for `logical` tokens, the next one's window being what stays text."""
        chunk = self._about.chunk
        return logical - (chunk - self.summaries) * max(0, logical // chunk - self.text_window)

    def target(self, logical: int, prompt: int = 0) -> int:
        """Mean over all layers, rounded up."""
        return math.ceil(self._mean(self.entries(logical), logical))

    def _mean(self, entries: float, text: float) -> float:
        """Over all layers, of which the summary layers hold `entries` and the others `text`."""
        kinds = self._about.layers
        return (kinds.count("summary") * entries + kinds.count("full") * text) / len(kinds)

    def due(self, at: Moment) -> int | None:
        """Entries of a summary layer, once a chunk has left the window."""
        keep = self.entries(at.logical)
        if keep == at.logical or (at.stage == "decode" and at.logical % self._about.chunk):
            return None
        return keep

    def next_due(self, at: Moment) -> int:
        return (at.logical // self._about.chunk + 1) * self._about.chunk

    def shares(self, keep: int, num_layers: int, held: int) -> list[int]:
        return [keep if kind == "summary" else EVERYTHING for kind in self._about.layers]

    def chunked_peak(self, prompt: int, chunk: int) -> int:
        return self._blocks(min(prompt, self.entries(prompt) + chunk + self._about.chunk), prompt)

    def peak(self, prompt: int, generate: int, chunk: int, whole: bool) -> int:
        total = prompt + generate
        early = self._blocks(prompt, prompt) if whole else self.chunked_peak(prompt, chunk)
        return max(early, self._blocks(min(total, self.entries(total) + self._about.chunk), total))

    def _blocks(self, entries: int, text: int) -> int:
        """Mean over all layers where each takes whole blocks: two kinds of layers round up apart."""
        size = self._block_size
        return math.ceil(self._mean(*(-(-held // size) * size for held in (entries, text))))

    # -- which -------------------------------------------------------------------------------------

    def select(self, view: LayerView, keep: int) -> Tensor | Merged:
        chunk, lost = self._about.chunk, self._about.chunk - self.summaries
        before, after = ((view.logical - slots) // lost for slots in (view.num_slots, keep))
        held, gone = torch.arange(view.num_slots, device=view.positions.device), (after - before) * chunk
        if not self.summaries:
            return held[gone:].expand(view.num_heads, -1)
        text = held[before:]
        ends = text[chunk - 1 : gone : chunk]  # a summary stands where its chunk ended
        slots = torch.cat([held[:before], ends, text[gone:]]).expand(view.num_heads, -1)
        keys, values = view.summaries(before, after)
        return Merged(slots, keys, values, (after - before) * lost, first=before)

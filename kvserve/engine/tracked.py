"""What the scheduler remembers of a request with a compressing policy."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Protocol

from kvserve.channels import Asked
from kvserve.engine.rounds import Round, Rounds
from kvserve.policy import Facts, Moment, Policy
from kvserve.policy import request as wire
from kvserve.policy.admission import whole_prefill
from kvserve.policy.evidence import whole
from kvserve.policy.requirements import Asks, foresees


class StartingPoint(Protocol):
    """A compressed prefix, as a request that starts from it sees it."""

    logical: int  # tokens that need not be read
    rounds: list[Round]  # which have compressed them


@dataclass
class Tracked:
    """Policy, stage and running counts of one request."""

    counted: ClassVar[bool] = True  # whether it is in the books
    shared: ClassVar[bool] = True  # whether others may read its blocks, as long as nothing of it was given up

    policy: Policy
    asks: Asks
    call: str | None = None  # id under which the API process files the outcome
    identity: str = ""  # its policy but for `at`: what a compressed prefix that it may start from was made by
    drafts: int = 0  # tokens that a step may try beyond the one that it computes
    whole: bool = True  # compact once when the prompt is complete, not between chunks
    prefilled: bool = False
    asked_from: int = 0  # at lengths below this one no compaction is due
    overdue: bool = False  # a due compaction found no destination blocks: try again at the next step
    weights: Sequence[float] | None = None  # each layer's share of the budget, mean 1, as the worker divided it
    shared_tokens: int = 0  # that it did not have to read: it started from a shared compressed prefix
    published: bool = False  # whether its own compressed prefix has been offered
    apart: bool = False  # whether it is to read its prompt itself: an empty pool has no room for a copy
    compactions: int = 0
    merged: float = 0.0  # tokens per layer (mean) that went into others
    drafted: int = 0  # tokens
    accepted: int = 0  # of those
    in_flight: int = 0  # drafted tokens that count as computed, and of which it is not known yet whether they stay
    rounds: Rounds = field(default_factory=Rounds)

    def most_held(self, tokens: int, facts: Facts) -> int | None:
        """Choose how a prompt of `tokens` is compacted; how many it holds at once at most, None for all of them."""
        read = self.prompt_of(tokens)
        self.whole = whole_prefill(self.policy, read, facts)
        if read < tokens:
            return whole("peak", self.policy.peak(read, tokens - read, facts.chunk, self.whole), 1)
        return None if self.whole else whole("chunked_peak", self.policy.chunked_peak(tokens, facts.chunk), 1)

    def hit_limit(self, tokens: int) -> int:
        """Tokens that may come from the prefix cache at most: a hit skips queries, which the policy may want to see.

        A prompt is compacted before the step after the one that ends it, so one token is left to that.
        """
        least = math.inf if self.asks.gathers else max(self.asks.query_window, 1)
        return int(max(0, self.first_round(tokens) - least))

    @property
    def shares(self) -> bool:
        """Whether it may start from a compressed prefix, and leaves one: what is chosen between chunks is load's."""
        return self.policy.share and self.whole

    def leaves(self, done: Round) -> bool:
        """Whether a round leaves a compressed prefix for others."""
        return self.shares and not self.published and not self.overdue and done.logical == self.policy.at

    def divided_as(self, weights: Sequence[float] | None) -> None:
        """The prefix that it is about to start from had the budget divided among the layers like this."""
        self.weights = self.weights if self.weights is not None else weights

    def undivided_again(self, weights: Sequence[float] | None) -> None:
        """It could not be let in after all."""
        self.weights = None if self.weights is weights else self.weights

    def start_from(self, start: StartingPoint, prompt: int) -> None:
        """The request, of a prompt of so many tokens, goes on from a compressed prefix."""
        self.rounds.begin_with(start.rounds)
        self.prefilled = start.logical >= self.prompt_of(prompt)
        self.shared_tokens = start.logical

    def prompt_of(self, tokens: int) -> int:
        """How many of a prompt's tokens count as prompt."""
        return whole("prompt_of", self.policy.prompt_of(tokens), 0)

    def excess(self, logical: int, physical: int, prompt: int) -> int:
        """Tokens held over the target of the policy."""
        return physical - whole("target", self.policy.target(logical, self.prompt_of(prompt)), 1)

    def first_round(self, tokens: int) -> int:
        """Length at which a cache of `tokens` is compacted first, if it is: a prefix hit must end before."""
        made = self.rounds.made
        return made[0].logical if made else self.prompt_of(tokens)

    @property
    def paced(self) -> bool:
        """Whether `chunk` has a say in how many tokens a step computes."""
        return self.policy.at is not None or self.rounds.restarted or self.drafts > 0

    def chunk(self, logical: int, physical: int, prompt: int, new: int) -> int:
        """How many of the `new` tokens the coming step may compute: none past a compaction that is due before them.

        That matters to a request that says `at` which token to compact, since the rest of its prompt is read as if it
        were being generated, to one that is computed again, and to one whose next tokens are drafted: it is compacted
        at the lengths at which it would be without drafts. 0: what it waits for comes with the next step: layers'
        shares, or which drafts are accepted.
        """
        policy = self.policy
        prompt = self.prompt_of(prompt)
        if self.rounds.restarted and (again := self.rounds.chunk(logical, prompt, new)) is not None:
            return again
        if logical < prompt:
            return new if policy.at is None else min(new, prompt - logical)
        if policy.when == "pressure":
            return new
        if self._undivided:
            return 0 if policy.at is not None else min(new, 1)
        if logical + new <= self.asked_from:
            return new
        for count in range(1 - self.in_flight, new):
            if policy.due(Moment(logical + count, physical + count, "decode", prompt)) is not None:
                return 0 if self.in_flight else count
        return new

    @property
    def _undivided(self) -> bool:
        """Whether the worker's word on the layers' shares is on its way: asynchronous steps hear it a step later."""
        return self.asks.own_shares and self.weights is None

    def due(self, logical: int, physical: int, prompt: int) -> int | None:
        """Tokens to keep now, or None."""
        self.rounds.decided = max(self.rounds.decided, logical)
        prompt = self.prompt_of(prompt)
        if logical < prompt:
            stage = "prefill"
        elif self._undivided:
            return None
        else:
            stage = "decode" if self.prefilled and not self.overdue else "prefilled"
            self.prefilled = True
        if stage == "prefill" and self.whole:
            return None
        if stage != "prefill" and self.policy.when == "pressure" and not self.overdue:
            return None
        self.overdue = False
        moment = Moment(logical, physical, stage, prompt)  # type: ignore[arg-type]
        keep = self.policy.due(moment)
        if keep is not None:
            return whole("due", keep, 1)
        if stage != "prefill" and self.policy.when == "always" and foresees(type(self.policy)):
            self.asked_from = whole("next_due", self.policy.next_due(moment), logical + 1)
        return None

    def keep_by_group(self, keep: int, held: int, layers: Sequence[Sequence[int]]) -> list[int]:
        """`keep` of `held` tokens per layer on the mean -> tokens for each group; layers = which ones a group has."""
        count = sum(map(len, layers))
        shares: Sequence[float] | None = self.policy.shares(keep, count, held)
        if shares is not None and len([whole("shares", share, 0) for share in shares]) != count:
            raise ValueError(f"shares gave {len(shares)} numbers; allowed: one for each of the {count} layers")
        if self.weights is not None:
            shares = [weight * keep for weight in self.weights]
        if shares is None:
            return [keep] * len(layers)
        return [round(sum(shares[layer] for layer in group) / len(group)) for group in layers]


@dataclass
class Replayed(Tracked):
    """A canary's: it keeps all, reads the prefix cache and leaves nothing in it, and is in no books."""

    counted: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    paced: ClassVar[bool] = True  # type: ignore[misc]
    judged: int = 1  # tokens before the answer that it is about

    def most_held(self, tokens: int, facts: Facts) -> int | None:
        return None

    def hit_limit(self, tokens: int) -> int:
        return self.judged - 1  # the last token of the prompt speaks of the first one of the answer

    def chunk(self, logical: int, physical: int, prompt: int, new: int) -> int:
        return min(new, wire.CANARY_CHUNK)

    def due(self, logical: int, physical: int, prompt: int) -> int | None:
        return None


def tracked_of(asked: Asked, facts: Facts, prompt: int) -> Tracked | None:
    """None if a request has no policy, or one that keeps everything, and is no replay."""
    if asked.judged is not None:
        return Replayed(Policy(), Asks(), judged=asked.judged)
    if asked.policy is None:
        return None
    policy = wire.built(asked.policy, facts, prompt)
    if not policy.compresses:
        return None
    identity = _without_place(asked.policy) if policy.share else ""
    return Tracked(policy, Asks.of(policy), asked.call, identity, facts.drafts)


@lru_cache(maxsize=wire.KEPT)
def _without_place(text: str) -> str:
    """A policy's canonical string without `at`."""
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "at"}, sort_keys=True)

"""What the scheduler remembers of a request with a compressing policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvserve.engine.rounds import Rounds
from kvserve.policy import Facts, Moment, Policy
from kvserve.policy import request as wire
from kvserve.policy.requirements import Asks, whole


@dataclass
class Tracked:
    """Policy, stage and running counts of one request."""

    policy: Policy
    asks: Asks
    call: str | None  # id under which the API process files the outcome
    whole: bool  # compact once when the prompt is complete, not between chunks
    prefilled: bool = False
    overdue: bool = False  # a due compaction found no destination blocks: try again at the next step
    weights: Sequence[float] | None = None  # each layer's share of the budget, mean 1, as the worker divided it
    compactions: int = 0
    merged: float = 0.0  # tokens per layer (mean) that went into others
    rounds: Rounds = field(default_factory=Rounds)

    @classmethod
    def of(cls, extra_args: dict[str, Any] | None, facts: Facts, prompt: int) -> "Tracked | None":
        """From a request's sampling parameters; None if it has no policy or one that keeps everything."""
        policy = wire.compressing(extra_args)
        if policy is None:
            return None
        policy = policy.settled(facts).for_prompt(prompt)
        return cls(policy, Asks.of(policy), (extra_args or {}).get(wire.CALL), whole=True)

    @property
    def queries_seen(self) -> float:
        """How many of the prompt's last queries the policy's evidence comes from."""
        return math.inf if self.asks.gathers else self.asks.query_window

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

    def chunk(self, logical: int, physical: int, prompt: int, new: int) -> int:
        """How many of the `new` tokens the coming step may compute: none past a compaction that is due before them.

        That matters to a request that says `at` which token to compact, since the rest of its prompt is read as if it
        were being generated, and to one that is computed again. 0: what it waits for comes with the next step.
        """
        policy = self.policy
        prompt = self.prompt_of(prompt)
        if self.rounds.restarted and (again := self.rounds.chunk(logical, prompt, new)) is not None:
            return again
        if policy.at is None:
            return min(new, 1)  # generated tokens that no round has seen yet: at most those of the last steps
        if policy.when == "pressure":
            return new
        if logical < prompt:
            return min(new, prompt - logical)
        if self._undivided:
            return 0
        for count in range(1, new):
            if policy.due(Moment(logical + count, physical + count, "decode", prompt)) is not None:
                return count
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
        keep = self.policy.due(Moment(logical, physical, stage, prompt))  # type: ignore[arg-type]
        return None if keep is None else whole("due", keep, 1)

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

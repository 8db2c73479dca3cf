"""Random traffic on a tiny pool, with scheduler, worker and pool compared at every step."""

import random
from collections import Counter
from typing import Any

from kvserve.engine.blocks import CompressibleManager
from kvserve.policy import registry
from tests.engine import harness

LEAST = 49
"""Tokens that any policy may be told to keep, beside those that it protects."""
STEPS = 300
"""Of the engine, for each request: more than any needs, if nothing is stuck."""


class Traffic:
    """Requests with random policies, budgets, lengths, shared prefixes and aborts.

    sharing: how many of those that begin alike also share what that is compressed to.
    """

    def __init__(
        self, llm: Any, seed: int, prefix: str = "fuzz", pressure: float = 0.0, sharing: float = 0.0
    ) -> None:  # fmt: skip
        self.pressure, self.sharing = pressure, sharing
        self.llm, self.random, self.name = llm, random.Random(seed), f"{prefix}{seed}"
        self.prefixes = [harness.tokens(self.random.randrange(40, 400), seed=1000 + i) for i in range(4)]
        self.sent: dict[str, tuple[list[int], Any, int]] = {}
        self.answers: dict[str, list[int]] = {}
        self.aborted: set[str] = set()
        self.seen: Counter[str] = Counter()
        self._internal: dict[str, str] = {}

    def policy(self) -> Any:
        if self.random.random() < 0.3:
            return None
        chosen = self.random.choice(harness.policies(self.llm, budgeted=False))
        name = chosen["name"]
        if not registry.get(name).budgeted:
            return {"name": name, "prefill": self.random.choice(["whole", "chunks"])}
        share = self.random.random() < 0.5
        budget = (
            self.random.choice([0.1, 0.25, 0.5, 0.9])
            if share
            else self.random.randrange(LEAST if self.sharing else 40, 300)
        )
        fields: dict[str, Any] = {**chosen, "budget": budget, "slack": self.random.choice([16, 32, 64])}
        if self.random.random() < 0.3:
            fields["prefill"] = "chunks"
        if self.random.random() < self.pressure:
            fields["when"] = "pressure"
        if name == "scissorhands":
            fields["drop"] = self.random.choice([0.05, 0.2, 0.5])
            fields["slope"] = self.random.choice([0.0, 0.3])
            fields["granularity"] = "group"
        if name == "triattention":
            fields["protect_prompt"] = self.random.random() < 0.3
            fields["mode"] = self.random.choice(["per_head", "per_layer_per_head", "union"])
        return fields

    def send(self) -> None:
        prompt = list(self.random.choice(self.prefixes)) if self.random.random() < 0.6 else []
        prompt += harness.tokens(self.random.randrange(1, 400), seed=self.random.randrange(10**6))
        policy, length = self._sharing(prompt) or self.policy(), self.random.randrange(1, 90)
        req_id = f"{self.name}-{len(self.sent)}"
        self.sent[req_id] = (prompt, policy, length)
        self.llm.llm_engine.add_request(req_id, {"prompt_token_ids": prompt}, self.params(req_id))

    def _sharing(self, prompt: list[int]) -> dict[str, Any] | None:
        """Of the prompts that begin alike, the same policy at the same place."""
        begun = [i for i, prefix in enumerate(self.prefixes) if prompt[: len(prefix)] == prefix]
        if not begun or not self.sharing or self.random.random() >= self.sharing:
            return None
        able = [p for p in harness.policies(self.llm) if p["name"] != "triattention"]
        at = len(self.prefixes[begun[0]]) - 3 * begun[0]
        return {**able[begun[0] * 5 % len(able)], "budget": 60 + begun[0], "slack": 32, "at": at, "share": True}

    def params(self, req_id: str) -> Any:
        """Sampling parameters of a request that is about to be sent, the same each time."""
        _, policy, length = self.sent[req_id]
        return harness.params(policy, length, logprobs=None)

    def abort(self) -> None:
        pending = [r for r in self.sent if r not in self.answers and r not in self.aborted]
        if pending:
            victim = self.random.choice(pending)
            self.llm.llm_engine.abort_request([victim])
            self.aborted.add(victim)

    def run(self, requests: int, abort_rate: float = 0.15) -> None:
        """Send `requests` requests a few at a time and step until all have ended."""
        engine, waiting, steps = self.llm.llm_engine, requests, 0
        while waiting or engine.has_unfinished_requests():
            steps += 1
            assert steps < STEPS * requests, f"stuck: {states(self.llm)}"
            for _ in range(min(waiting, self.random.choice([0, 0, 1, 1, 2, 5]))):
                self.send()
                waiting -= 1
                if self.random.random() < abort_rate:
                    self.abort()
            for output in engine.step():
                if output.finished:
                    self.answers[output.request_id] = list(output.outputs[0].token_ids)
            self.check()

    def check(self) -> None:
        """After each step."""
        check(self.llm, self.seen)


def asynchronous(scheduler: Any) -> bool:
    """Whether the worker may be a step behind."""
    return bool(scheduler.scheduler_config.async_scheduling)


def states(llm: Any) -> list[tuple[Any, ...]]:
    """Who waits for what, for people."""
    scheduler = harness.scheduler(llm)
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    left = scheduler.requests.values()
    return [("free blocks", free)] + [
        (r.request_id, r.status.name, f"{r.num_computed_tokens} of {r.num_tokens}", f"preempted {r.num_preemptions}")
        for r in left
    ]


def check(llm: Any, seen: Counter[str]) -> None:
    """Scheduler, worker and pool agree on who holds what.

    Between two steps the worker is as old as the last executed step, so requests whose blocks changed
    since (finished, preempted, aborted) are compared only where both sides know them.
    """
    scheduler, runner = harness.scheduler(llm), harness.runner(llm)
    scheduler.check_integrity()
    pool = scheduler.kv_cache_manager.block_pool
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    holdings = [b for m in managers for blocks in m.req_to_blocks.values() for b in blocks if not b.is_null]
    owners: Counter[int] = Counter(b.block_id for b in holdings)
    for _, blocks in scheduler.deferred_frees:  # copies that may still be under way
        owners.update(b.block_id for b in blocks)
    held = {b.block_id for b in pool.blocks if b.ref_cnt > 0 and not b.is_null}
    assert held == set(owners), "blocks with references that no request holds, or the reverse"
    assert all(pool.blocks[i].ref_cnt == n for i, n in owners.items()), "reference counts"
    assert pool.get_num_free_blocks() == len(pool.blocks) - 1 - len(held), "free list"
    told = {each.id for each in scheduler.kv_prefixes} - set(runner.kv.held._held)
    assert not told or asynchronous(scheduler), "prefixes that the worker does not have"
    seen["prefixes"] += len(scheduler.kv_prefixes)
    running = {r.request_id: r for r in scheduler.running}
    for req_id, written in harness.block_rows(runner).items():
        if req_id not in running:
            continue
        for g, manager in enumerate(managers):
            if not isinstance(manager, CompressibleManager):
                continue  # the worker is not told which blocks have left a window
            ids = [b.block_id for b in manager.req_to_blocks[req_id]]
            assert all(row == ids for row in written(g)), f"block table rows of {req_id}"
            known = runner.kv.requests.get(req_id)
            assert (known.offset.get(g, 0) if known else 0) == manager.offset.get(req_id, 0), f"offset of {req_id}"
        seen["rows"] += 1
    seen["steps"] += 1

"""The canary: a share of the finished compressed requests is judged with the full cache while the engine is idle.

A limited number of prompts and answers waits in memory as token ids. They are in no file, no log and no metric.
"""

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kvserve.stats import Histogram
from server.canary.replay import UNFIT, Judgement, Replay, judged

QUIET_SECONDS = 1.0
"""Seconds without a request before a replay begins: a client's next question often follows its last answer."""

WAITING = 64
"""How many replays may wait; beyond that the oldest are dropped."""

WAITING_TOKENS = 1 << 20
"""Tokens of prompts and answers that may wait, all replays together: 40 MB."""

TRIES = 3
"""How often a replay may begin; requests interrupt it."""

QUALITY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
"""Edges of both histograms: fine near 1; the last one counts the answers that lost nothing."""

OUTCOMES = ("judged", "interrupted", "dropped", "failed")

logger = logging.getLogger(__name__)


class CanaryEngine(Protocol):
    """What a canary asks of the server; `server.canary.tap` has the real one."""

    def busy(self) -> bool:
        """Whether any client's request is under way."""

    def can(self, replay: Replay) -> bool:
        """Whether the engine still has the weights that answered the request."""

    async def send(self, replay: Replay) -> None:
        """Hand a replay to the engine; what it answers comes to `Canary.answered`."""

    async def abort(self, replay: Replay) -> None:
        """Abort a replay, before anything else is sent to the engine."""


class CanaryFindings:
    """Counted since start-up; read by `server.metrics.metrics`, perhaps in another thread."""

    def __init__(self) -> None:
        self.quality: dict[str, dict[str, Histogram]] = {name: {} for name in Judgement._fields}  # by policy
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.skipped: Counter[str] = Counter(dict.fromkeys(UNFIT, 0))
        self.waiting = 0

    def expect(self, policy: str) -> None:
        """Begin with zeros, so that a rate counts the first judgement too."""
        for histograms in self.quality.values():
            histograms.setdefault(policy, Histogram.over(QUALITY))

    def judge(self, policy: str, judgement: Judgement) -> None:
        for name, share in judgement._asdict().items():
            self.quality[name][policy].add(QUALITY, share)
        self.outcomes["judged"] += 1


@dataclass(eq=False)
class Task:
    """A replay, and how often it has been begun."""

    replay: Replay
    tries: int = 0


class Queue:
    """Replays that wait for their turn, the oldest first."""

    def __init__(self, findings: CanaryFindings) -> None:
        self._tasks: deque[Task] = deque()
        self._findings = findings
        self.filled = asyncio.Event()

    def add(self, task: Task) -> None:
        self._tasks.append(task)
        self._trim()

    def put_back(self, task: Task) -> None:
        """The next one again, if it may be tried again."""
        if task.tries < TRIES:
            self._tasks.appendleft(task)
        else:
            self._findings.outcomes["dropped"] += 1
        self._trim()

    def take(self) -> Task:
        task = self._tasks.popleft()
        self._trim()
        return task

    def _trim(self) -> None:
        while len(self._tasks) > WAITING or sum(task.replay.tokens for task in self._tasks) > WAITING_TOKENS:
            self._tasks.popleft()
            self._findings.outcomes["dropped"] += 1
        self._findings.waiting = len(self._tasks)
        (self.filled.set if self._tasks else self.filled.clear)()


class Canary:
    """Runs on the event loop of vLLM's front end. Only `run` waits for the engine."""

    def __init__(
        self,
        rate: float,
        engine: CanaryEngine,
        draw: Callable[[], float] = random.random,
        quiet: float = QUIET_SECONDS,
    ) -> None:
        self.findings = CanaryFindings()
        self._rate, self._draw = rate, draw
        self._engine, self._quiet = engine, quiet
        self._queue = Queue(self.findings)
        self._touched = time.monotonic()  # when a client's request last came or went
        self._asked: tuple[Replay, asyncio.Future[Any]] | None = None  # the future's result is None if interrupted

    # -- clients' requests ----------------------------------------------------------------------------

    async def arrived(self) -> None:
        """A client's request has come, or is about to be sent to the engine: a running replay is aborted."""
        self._touched = time.monotonic()
        if self._asked is not None and not self._asked[1].done():
            replay, answer = self._asked
            answer.set_result(None)
            await self._engine.abort(replay)

    def ended(self) -> None:
        """A client's request has its last token."""
        self._touched = time.monotonic()

    def chooses(self) -> bool:
        """Whether the compressed request that has just ended is of the sampled share."""
        return self._draw() < self._rate

    def skip(self, reason: str) -> None:
        self.findings.skipped[reason] += 1

    def keep(self, replay: Replay) -> None:
        self.findings.expect(replay.policy)
        self._queue.add(Task(replay))

    # -- replays --------------------------------------------------------------------------------------

    def answered(self, output: Any) -> None:
        """Takes each output of the engine; ignores those of an interrupted replay."""
        if self._asked is None:
            return
        replay, answer = self._asked
        if output.request_id == replay.request.request_id and output.finish_reason is not None and not answer.done():
            answer.set_result(output)

    async def run(self) -> None:
        """Replay one after the other, until the task is cancelled."""
        while True:
            task = await self._next()
            task.replay, task.tries = task.replay.again(), task.tries + 1
            try:
                await self._replay(task)
            except Exception:
                self.findings.outcomes["failed"] += 1
                logger.exception("kvserve: a replay of the canary failed")

    async def _next(self) -> Task:
        """The oldest one, as soon as the engine has been quiet for long enough."""
        while True:
            await self._queue.filled.wait()
            if (rest := self._rest()) <= 0:
                return self._queue.take()
            await asyncio.sleep(rest)

    def _rest(self) -> float:
        """Seconds of quiet still to wait for, if nobody comes."""
        return self._quiet if self._engine.busy() else self._touched + self._quiet - time.monotonic()

    async def ask(self, replay: Replay) -> Any:
        """The engine's answer; None if a request came first."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked = replay, answer
        try:
            await self._engine.send(replay)  # no request can have come in between: up to here nothing has waited
            return await answer
        finally:
            self._asked = None

    async def _replay(self, task: Task) -> None:
        if not self._engine.can(task.replay):
            self.findings.outcomes["dropped"] += 1
            return
        output = await self.ask(task.replay)
        if output is None:
            self.findings.outcomes["interrupted"] += 1
            self._queue.put_back(task)
        elif (judgement := judged(task.replay, output)) is None:
            self.findings.outcomes["failed"] += 1
        else:
            self.findings.judge(task.replay.policy, judgement)

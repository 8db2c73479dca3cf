"""kvpress' worker, seen from here: a process of the environment that kvpress is installed in."""

import asyncio
import json
import os
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
LINE = 2**24  # bytes that an answer may have
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Gone(RuntimeError):
    """The worker has ended; the message has the end of its log."""


class Partner:
    """Asks the worker, one question at a time."""

    def __init__(self, process: Process, log: IO[str]) -> None:
        self._process, self._log = process, log
        self._turn = asyncio.Lock()

    async def ask(self, do: str, **what: Any) -> Any:
        """What the worker's method of that name returns. Raises Gone."""
        assert self._process.stdin and self._process.stdout
        async with self._turn:
            try:
                self._process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
                await self._process.stdin.drain()
            except ConnectionError:
                raise Gone(self._last()) from None
            line = await self._process.stdout.readline()
        if not line:
            raise Gone(self._last())
        return json.loads(line)

    def _last(self) -> str:
        self._log.seek(0)
        return f"the kvpress worker has ended:\n{self._log.read()[-3000:]}"


class Pool:
    """Several workers as one: a question goes to the first that is free."""

    def __init__(self, members: Sequence[Partner]) -> None:
        self._free: asyncio.Queue[Partner] = asyncio.Queue()
        for each in members:
            self._free.put_nowait(each)

    async def ask(self, do: str, **what: Any) -> Any:
        """As `Partner.ask`."""
        member = await self._free.get()
        try:
            return await member.ask(do, **what)
        finally:
            self._free.put_nowait(member)


@asynccontextmanager
async def pool(python: Path, model: str, count: int) -> AsyncIterator[Pool]:
    """As many workers, as long as the block lives."""
    async with AsyncExitStack() as stack:
        yield Pool([await stack.enter_async_context(partner(python, model)) for _ in range(count)])


@asynccontextmanager
async def partner(python: Path, model: str) -> AsyncIterator[Partner]:
    """A worker that lives as long as the block; `python` is the interpreter that has kvpress."""
    env = {**ENVIRONMENT, **os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as log:
        command = (str(python), "-m", "evals.beside.worker", model)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=log, env=env, limit=LINE
        )
        try:
            yield Partner(process, log)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
